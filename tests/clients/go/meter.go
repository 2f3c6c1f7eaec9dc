// Debits one token at a time on a Meter stream, raises the hold when it is used up, and commits
// what was used.
package main

import (
	"context"

	pb "example.com/bursar/client/bursarv1"
)

type metering struct {
	ctx    context.Context
	ledger pb.LedgerServiceClient
	stream pb.LedgerService_MeterClient
	id     string
	hold   int64
	wish   int64
}

// Meters until it is stopped; once `pause` tokens are used it only listens.
func meter(
	ctx context.Context, ledger pb.LedgerServiceClient, held *pb.Reservation, wish, pause int64,
) (*report, error) {
	stream, err := ledger.Meter(ctx)
	if err != nil {
		return nil, err
	}
	m := &metering{ctx, ledger, stream, held.Id, wish, wish}
	seen := &report{}
	for {
		// Ask first, work then: what is refused was not used.
		var answer *pb.MeterAnswer
		if seen.Used == pause {
			answer, err = m.receive(true)
		} else {
			answer, err = m.debit(seen.Used + 1)
		}
		if err != nil {
			return nil, err
		}
		if answer.Verdict != pb.Verdict_VERDICT_STOP {
			if seen.Used != pause {
				seen.Used++
			}
			continue
		}
		refusal := answer.Refusal
		if refusal.GetReason() == pb.Refusal_REASON_HOLD_EXHAUSTED {
			if refusal, err = m.extend(); err != nil {
				return nil, err
			}
			if refusal == nil {
				continue
			}
		}
		seen.Unasked = seen.Used == pause
		seen.Verdict = answer.Verdict.String()
		seen.Refusal, seen.Account = refusal.GetReason().String(), refusal.GetAccount()
		return seen, m.commit(seen)
	}
}

// Counts are cumulative: "used so far".
func (m *metering) debit(used int64) (*pb.MeterAnswer, error) {
	debits := []*pb.MeterDebit{{Reservation: m.id, Used: tokens(used)}}
	if err := m.stream.Send(&pb.MeterRequest{Debits: debits}); err != nil {
		return nil, err
	}
	return m.receive(false)
}

// The next answer, asked for or not. News that come before an asked answer may be left out: that
// answer holds the newest verdict.
func (m *metering) receive(unasked bool) (*pb.MeterAnswer, error) {
	for {
		response, err := m.stream.Recv()
		if err != nil {
			return nil, err
		}
		if response.Unasked == unasked {
			return response.Answers[0], nil
		}
	}
}

// Raises the hold; returns why not, if it could not.
func (m *metering) extend() (*pb.Refusal, error) {
	answer, err := m.ledger.Extend(m.ctx, &pb.ExtendRequest{
		Reservation:   m.id,
		Granted:       tokens(m.hold + m.wish),
		MinAcceptable: tokens(m.hold + 1),
	})
	if err != nil {
		return nil, err
	}
	if answer.Verdict != pb.Verdict_VERDICT_STOP {
		m.hold = answer.Reservation.Granted[0].Value
	}
	return answer.Refusal, nil
}

// Commits, and looks at what a debit and another Commit are answered after that.
func (m *metering) commit(seen *report) error {
	request := &pb.CommitRequest{Reservation: m.id, Actual: tokens(seen.Used)}
	answer, err := m.ledger.Commit(m.ctx, request)
	if err != nil {
		return err
	}
	seen.Spent = answer.Spent[0].Value
	late, err := m.debit(seen.Used)
	if err != nil {
		return err
	}
	seen.Ended = late.GetError().GetReason().String()
	request.Actual = tokens(seen.Used + 1)
	_, err = m.ledger.Commit(m.ctx, request)
	seen.Error = explain(err)
	return nil
}
