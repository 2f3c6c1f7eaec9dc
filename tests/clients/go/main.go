// A client of Bursar in Go, on stubs that are generated from the proto.
//
//	client meter TARGET ACCOUNT WISH          debits on a Meter stream until it is stopped
//	client watch TARGET ACCOUNT WISH COUNT    debits COUNT, then waits until it is told to stop
//	client lease TARGET ACCOUNT WISH SOCKET   debits by shared memory until it is stopped
//
// It prints what it saw as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "example.com/bursar/client/bursarv1"
)

const patience = 30 * time.Second

// What the program saw.
type report struct {
	Used    int64    `json:"used"`
	Verdict string   `json:"verdict"`
	Refusal string   `json:"refusal"`
	Account string   `json:"account"`
	Unasked bool     `json:"unasked"`
	Spent   int64    `json:"spent"`
	Ended   string   `json:"ended"`
	Error   rpcError `json:"error"`
}

// What a failed call carries.
type rpcError struct {
	Code   int    `json:"code"`
	Reason string `json:"reason"`
	Domain string `json:"domain"`
}

func main() {
	seen, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	line, err := json.Marshal(seen)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func run(args []string) (*report, error) {
	if len(args) < 4 {
		return nil, errors.New("usage: client meter|watch|lease TARGET ACCOUNT WISH [COUNT|SOCKET]")
	}
	mode, target, account, rest := args[0], args[1], args[2], args[4:]
	wish, err := strconv.ParseInt(args[3], 10, 64)
	if err != nil {
		return nil, err
	}
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	connection, err := grpc.NewClient(target, plain)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ledger := pb.NewLedgerServiceClient(connection)
	held, err := reserve(ctx, ledger, account, wish)
	if err != nil {
		return nil, err
	}
	switch {
	case mode == "meter" && len(rest) == 0:
		return meter(ctx, ledger, held, wish, -1)
	case mode == "watch" && len(rest) == 1:
		count, err := strconv.ParseInt(rest[0], 10, 64)
		if err != nil {
			return nil, err
		}
		return meter(ctx, ledger, held, wish, count)
	case mode == "lease" && len(rest) == 1:
		return lease(ctx, ledger, held, rest[0])
	}
	return nil, fmt.Errorf("%q takes other arguments", mode)
}

func tokens(value int64) []*pb.Amount {
	return []*pb.Amount{{Unit: "tokens", Value: value}}
}

// A refusal is an answer, not an error.
func reserve(
	ctx context.Context, ledger pb.LedgerServiceClient, account string, wish int64,
) (*pb.Reservation, error) {
	answer, err := ledger.Reserve(ctx, &pb.ReserveRequest{Account: account, Amounts: tokens(wish)})
	if err != nil {
		return nil, err
	}
	if answer.Verdict == pb.Verdict_VERDICT_STOP {
		return nil, fmt.Errorf("refused by %s: %s", answer.Refusal.Account, answer.Refusal.Reason)
	}
	return answer.Reservation, nil
}

// The ErrorInfo of a failed call.
func explain(err error) rpcError {
	failed := status.Convert(err)
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return rpcError{int(failed.Code()), info.Reason, info.Domain}
		}
	}
	return rpcError{Code: int(failed.Code())}
}
