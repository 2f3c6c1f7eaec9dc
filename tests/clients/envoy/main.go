// A client of Envoy's rate limit service in Go, on the stubs that Envoy's own project publishes.
//
//	client TARGET DOMAIN HITS KEY=VALUE,…[#HITS] …    asks once, each descriptor with hits of its own
//
// It prints the answer as JSON.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	common "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	service "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const patience = 30 * time.Second

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(target, domain, hits string, descriptors []string) error {
	addend, err := strconv.ParseUint(hits, 10, 32)
	if err != nil {
		return err
	}
	request := &service.RateLimitRequest{Domain: domain, HitsAddend: uint32(addend)}
	for _, text := range descriptors {
		descriptor, err := parse(text)
		if err != nil {
			return err
		}
		request.Descriptors = append(request.Descriptors, descriptor)
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := service.NewRateLimitServiceClient(conn).ShouldRateLimit(ctx, request)
	if err != nil {
		return err
	}
	fmt.Println(protojson.Format(answer))
	return nil
}

func parse(text string) (*common.RateLimitDescriptor, error) {
	entries, own, has := strings.Cut(text, "#")
	descriptor := &common.RateLimitDescriptor{}
	for _, entry := range strings.Split(entries, ",") {
		key, value, _ := strings.Cut(entry, "=")
		next := &common.RateLimitDescriptor_Entry{Key: key, Value: value}
		descriptor.Entries = append(descriptor.Entries, next)
	}
	if has {
		hits, err := strconv.ParseUint(own, 10, 64)
		if err != nil {
			return nil, err
		}
		descriptor.HitsAddend = wrapperspb.UInt64(hits)
	}
	return descriptor, nil
}
