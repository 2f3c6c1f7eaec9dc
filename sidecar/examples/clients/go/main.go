// An agent that pays for every token: it reserves, debits as it goes, follows advice, is cut off
// where the budget ends, and commits what it used.
//
//	BURSAR_TARGET=unix:/run/bursar/bursar.sock go run . ACCOUNT TOKENS
//
// BURSAR_TLS_CA names the authorities to trust, and turns TLS on; BURSAR_TOKEN is shown, if it is set.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "example.com/agent/bursarv1"
)

func main() {
	if len(os.Args) != 3 || os.Getenv("BURSAR_TARGET") == "" {
		fail("usage: BURSAR_TARGET=ADDRESS agent ACCOUNT TOKENS")
	}
	wish, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err != nil {
		fail(err)
	}
	if err := run(os.Args[1], wish); err != nil {
		fail(err)
	}
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}

func run(account string, wish int64) error {
	connection, err := connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	ledger := pb.NewLedgerServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if token := os.Getenv("BURSAR_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}

	answer, err := ledger.Reserve(ctx, &pb.ReserveRequest{
		Account:        account,
		IdempotencyKey: rand.Text(), // a repeat of this request reserves nothing more
		Amounts:        tokens(wish),
		MinAcceptable:  tokens(1), // less than the wish is better than nothing
	})
	if err != nil {
		return err
	}
	if answer.Verdict == pb.Verdict_VERDICT_STOP { // an answer, not an error
		return fmt.Errorf("refused by %s: %s", answer.Refusal.Account, answer.Refusal.Reason)
	}
	reservation := answer.Reservation
	fmt.Printf("reserved %d of %d tokens\n", reservation.Granted[0].Value, wish)

	used, err := generate(ctx, ledger, reservation.Id, wish)
	if err != nil {
		return err
	}
	_, err = ledger.Commit(ctx, &pb.CommitRequest{
		Reservation: reservation.Id, Actual: tokens(used),
	})
	if err != nil {
		return err
	}
	fmt.Printf("spent %d tokens\n", used)
	return nil
}

// Generates up to `most` tokens, one debit each; returns how many.
func generate(
	ctx context.Context, ledger pb.LedgerServiceClient, reservation string, most int64,
) (int64, error) {
	used, temperature, verdict := int64(0), 0.8, pb.Verdict_VERDICT_OK
	for used < most {
		// Ask first, work then. Counts are cumulative: "used so far", never "used since".
		answer, err := ledger.Debit(ctx, &pb.DebitRequest{
			Reservation: reservation, Used: tokens(used + 1),
		})
		if err != nil {
			return used, err
		}
		if answer.Verdict == pb.Verdict_VERDICT_STOP {
			fmt.Printf("%d tokens: %s, %s\n", used, answer.Verdict, answer.Refusal.Reason)
			break
		}
		model(temperature)
		used++
		if answer.Verdict == verdict {
			continue
		}
		verdict = answer.Verdict
		fmt.Printf("%d tokens: %s\n", used, verdict)
		if advice := answer.Advice; advice != nil {
			if advice.Temperature != nil {
				temperature = *advice.Temperature
				fmt.Printf("temperature %g\n", temperature)
			}
			if advice.MaxNewTokens != nil {
				most = min(most, used+*advice.MaxNewTokens)
				fmt.Printf("at most %d tokens\n", most)
			}
		}
	}
	return used, nil
}

// One forward pass of your model.
func model(temperature float64) {}

func tokens(count int64) []*pb.Amount {
	return []*pb.Amount{{Unit: "tokens", Value: count}}
}

func connect() (*grpc.ClientConn, error) {
	security := insecure.NewCredentials()
	if ca := os.Getenv("BURSAR_TLS_CA"); ca != "" {
		var err error
		if security, err = credentials.NewClientTLSFromFile(ca, ""); err != nil {
			return nil, err
		}
	}
	return grpc.NewClient(os.Getenv("BURSAR_TARGET"), grpc.WithTransportCredentials(security))
}
