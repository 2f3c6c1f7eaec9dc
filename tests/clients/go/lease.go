// Debits a lease on shared memory, as rust/lease/src/layout.rs says. Numbers there are
// little-endian, and so has to be the host.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	pb "example.com/bursar/client/bursarv1"
)

const (
	magic   = 0x4c535242 // "BRSL"
	version = 1
	page    = 4096
	word    = 64 // where each page's word is

	count  = 1<<48 - 1 // bits of used and granted
	closed = 1 << 63   // of the usage word
	ended  = 1 << 51   // of the control word
	stop   = 3         // a verdict

	request   = 144
	answer    = 256
	attach    = 1
	tokenUnit = 0 // the index of the unit

	chunk = 64 // how much to ask for at a time
)

// A lease's connection and its words. The lease ends with the connection.
type pages struct {
	connection     *net.UnixConn
	usage, control *uint64
}

// Debits one token at a time until it is stopped.
func lease(
	ctx context.Context, ledger pb.LedgerServiceClient, held *pb.Reservation, socket string,
) (*report, error) {
	lent, err := open(socket, held.Id)
	if err != nil {
		return nil, err
	}
	defer lent.connection.Close()
	seen := &report{Refusal: "REASON_UNSPECIFIED"}
	for {
		verdict, fits, err := lent.step(ctx, 1)
		if err != nil {
			return nil, err
		}
		if fits {
			seen.Used++
			if verdict == stop {
				break
			}
			continue
		}
		refusal, err := topUp(ctx, ledger, held.Id, seen.Used)
		if err != nil {
			return nil, err
		}
		if refusal != nil {
			seen.Refusal, seen.Account = refusal.Reason.String(), refusal.Account
			break
		}
	}
	seen.Verdict = pb.Verdict_VERDICT_STOP.String()
	// Absent amounts: what was debited.
	done, err := ledger.Commit(ctx, &pb.CommitRequest{Reservation: held.Id})
	if err != nil {
		return nil, err
	}
	seen.Spent = done.Spent[0].Value
	if _, _, err = lent.step(ctx, 1); err == errEnded {
		seen.Ended = "ended"
	}
	return seen, nil
}

var errEnded = errors.New("the lease is over")

// Debits n, if it fits the grant, and returns the verdict.
func (p *pages) step(ctx context.Context, n uint64) (verdict uint64, fits bool, err error) {
	for {
		// Go's atomics are sequentially consistent: more than the acquire and release asked for.
		usage := atomic.LoadUint64(p.usage)
		control := atomic.LoadUint64(p.control)
		switch {
		case control&ended != 0:
			return stop, false, errEnded
		case usage&closed != 0:
			// The daemon is at work on the lease.
			if ctx.Err() != nil {
				return stop, false, ctx.Err()
			}
			time.Sleep(50 * time.Microsecond)
		case usage&count+n > control&count:
			return 0, false, nil
		case atomic.CompareAndSwapUint64(p.usage, usage, usage+n):
			return control >> 48 & 7, true, nil
		}
	}
}

// Asks for more; returns why there is none. The answer comes after the page has the new grant.
func topUp(
	ctx context.Context, ledger pb.LedgerServiceClient, id string, used int64,
) (*pb.Refusal, error) {
	more, err := ledger.Extend(ctx, &pb.ExtendRequest{
		Reservation:   id,
		Granted:       tokens(used + chunk),
		MinAcceptable: tokens(used + 1),
		TopUp:         true,
	})
	return more.GetRefusal(), err
}

// Attaches at the lease socket and maps the pages.
func open(socket, reservation string) (*pages, error) {
	address := &net.UnixAddr{Name: socket, Net: "unixpacket"}
	connection, err := net.DialUnix("unixpacket", nil, address)
	if err != nil {
		return nil, err
	}
	connection.SetDeadline(time.Now().Add(5 * time.Second))
	frame, little := make([]byte, request), binary.LittleEndian
	little.PutUint32(frame, magic)
	little.PutUint16(frame[4:], version)
	little.PutUint16(frame[6:], attach)
	frame[72] = tokenUnit
	frame[73] = byte(copy(frame[80:], reservation))
	if _, err := connection.Write(frame); err != nil {
		return nil, err
	}
	bytes, beside := make([]byte, answer), make([]byte, syscall.CmsgSpace(2*4))
	length, besideLength, _, _, err := connection.ReadMsgUnix(bytes, beside)
	if err != nil || length == 0 {
		return nil, fmt.Errorf("no answer at the lease socket: %w", err)
	}
	if length != answer || little.Uint32(bytes) != magic || little.Uint16(bytes[4:]) != version {
		return nil, fmt.Errorf("the lease socket does not speak version %d", version)
	}
	if reason := little.Uint16(bytes[6:]); reason != 0 {
		message := bytes[48 : 48+min(int(little.Uint16(bytes[40:])), answer-48)]
		return nil, fmt.Errorf("%s: %s", pb.ErrorReason(reason), message)
	}
	fds, err := descriptors(beside[:besideLength])
	if err != nil {
		return nil, err
	}
	usage, err := mapped(fds[0], syscall.PROT_READ|syscall.PROT_WRITE)
	if err != nil {
		return nil, err
	}
	control, err := mapped(fds[1], syscall.PROT_READ)
	return &pages{connection, usage, control}, err
}

func descriptors(beside []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(beside)
	if err != nil || len(messages) != 1 {
		return nil, errors.New("the answer came without its pages")
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		return nil, errors.New("the answer came without its pages")
	}
	return fds, nil
}

// Maps a page and returns its word. The mapping lives as long as the process.
func mapped(fd, protection int) (*uint64, error) {
	defer syscall.Close(fd)
	bytes, err := syscall.Mmap(fd, 0, page, protection, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	little := binary.LittleEndian
	if little.Uint32(bytes) != magic || little.Uint32(bytes[4:]) != version {
		return nil, fmt.Errorf("the page is not of version %d", version)
	}
	return (*uint64)(unsafe.Pointer(&bytes[word])), nil
}
