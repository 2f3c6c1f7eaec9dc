#!/bin/sh
# Makes bursarv1/ from the proto files, by the plugins that go.mod pins.
set -eu
cd "$(dirname "$0")"
proto=${PROTO:-../../../../proto}
package=example.com/agent/bursarv1
protoc=${PROTOC:-protoc}
if ! command -v "${protoc%% *}" >/dev/null; then
    echo "there is no ${protoc%% *}: install it (apt-get install protobuf-compiler), or take PyPI's:" >&2
    echo "  pip install grpcio-tools && PROTOC='python3 -m grpc_tools.protoc' $0" >&2
    exit 1
fi
go build -buildvcs=false -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go
go build -buildvcs=false -o bin/ google.golang.org/grpc/cmd/protoc-gen-go-grpc
set -- bursar/v1/ledger.proto bursar/v1/errors.proto
for file in "$@"; do
    set -- "$@" "--go_opt=M$file=$package" "--go-grpc_opt=M$file=$package"
done
$protoc -I"$proto" \
    --plugin=bin/protoc-gen-go --go_out=. --go_opt=module=example.com/agent \
    --plugin=bin/protoc-gen-go-grpc --go-grpc_out=. --go-grpc_opt=module=example.com/agent "$@"
