import bursar.v1.Ledger.Amount;
import bursar.v1.Ledger.CommitRequest;
import bursar.v1.Ledger.ExtendRequest;
import bursar.v1.Ledger.MeterAnswer;
import bursar.v1.Ledger.MeterDebit;
import bursar.v1.Ledger.MeterRequest;
import bursar.v1.Ledger.MeterResponse;
import bursar.v1.Ledger.Refusal;
import bursar.v1.Ledger.Reservation;
import bursar.v1.Ledger.ReserveRequest;
import bursar.v1.Ledger.Verdict;
import bursar.v1.LedgerServiceGrpc;
import bursar.v1.LedgerServiceGrpc.LedgerServiceBlockingV2Stub;
import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.BlockingClientCall;
import java.util.concurrent.TimeUnit;

/**
 * A client of Bursar in Java, on stubs that are generated from the proto.
 *
 * <pre>
 * java Client meter TARGET ACCOUNT WISH          debits on a Meter stream until it is stopped
 * java Client watch TARGET ACCOUNT WISH COUNT    debits COUNT, then waits until it is told to stop
 * </pre>
 *
 * It prints what it saw as one line of JSON. TARGET is a TCP address: netty takes Unix sockets too,
 * by its epoll transport.
 */
public final class Client {
    private static final int PATIENCE_S = 30;

    private final LedgerServiceBlockingV2Stub ledger;
    private final BlockingClientCall<MeterRequest, MeterResponse> stream;
    private final String reservation;
    private final long wish;
    private final long pause;
    private long hold;
    private long used;

    private Client(LedgerServiceBlockingV2Stub ledger, String account, long wish, long pause)
            throws StatusException {
        this.ledger = ledger;
        this.wish = wish;
        this.hold = wish;
        this.pause = pause;
        var request = ReserveRequest.newBuilder().setAccount(account).addAmounts(tokens(wish));
        var answer = ledger.reserve(request.build());
        // A refusal is an answer, not an error.
        if (answer.getVerdict() == Verdict.VERDICT_STOP) {
            throw new IllegalStateException("refused: " + answer.getRefusal().getReason());
        }
        this.reservation = answer.getReservation().getId();
        this.stream = ledger.meter();
    }

    public static void main(String[] args) throws Exception {
        boolean watches = args[0].equals("watch");
        ManagedChannel channel =
                Grpc.newChannelBuilder(args[1], InsecureChannelCredentials.create()).build();
        try {
            var ledger = LedgerServiceGrpc.newBlockingV2Stub(channel)
                    .withDeadlineAfter(PATIENCE_S, TimeUnit.SECONDS);
            long pause = watches ? Long.parseLong(args[4]) : -1;
            var client = new Client(ledger, args[2], Long.parseLong(args[3]), pause);
            System.out.println(client.run());
        } finally {
            channel.shutdownNow();
        }
    }

    private static Amount tokens(long value) {
        return Amount.newBuilder().setUnit("tokens").setValue(value).build();
    }

    /** Meters until it is stopped; once {@code pause} tokens are used it only listens. */
    private String run() throws Exception {
        while (true) {
            boolean waits = used == pause;
            // Ask first, work then: what is refused was not used.
            MeterAnswer answer = waits ? receive(true) : debit(used + 1);
            if (answer.getVerdict() != Verdict.VERDICT_STOP) {
                used += waits ? 0 : 1;
                continue;
            }
            Refusal refusal = answer.getRefusal();
            if (refusal.getReason() == Refusal.Reason.REASON_HOLD_EXHAUSTED) {
                refusal = extend();
                if (refusal == null) {
                    continue;
                }
            }
            return report(answer.getVerdict(), refusal, waits);
        }
    }

    /** Counts are cumulative: "used so far". */
    private MeterAnswer debit(long count) throws Exception {
        var debit = MeterDebit.newBuilder().setReservation(reservation).addUsed(tokens(count));
        stream.write(MeterRequest.newBuilder().addDebits(debit).build());
        return receive(false);
    }

    /**
     * The next answer, asked for or not. News that come before an asked answer may be left out:
     * that answer holds the newest verdict.
     */
    private MeterAnswer receive(boolean unasked) throws Exception {
        while (true) {
            MeterResponse response = stream.read(PATIENCE_S, TimeUnit.SECONDS);
            if (response == null) {
                throw new IllegalStateException("the stream has ended");
            }
            if (response.getUnasked() == unasked) {
                return response.getAnswers(0);
            }
        }
    }

    /** Raises the hold; returns why not, if it could not. */
    private Refusal extend() throws StatusException {
        var answer = ledger.extend(ExtendRequest.newBuilder()
                .setReservation(reservation)
                .addGranted(tokens(hold + wish))
                .addMinAcceptable(tokens(hold + 1))
                .build());
        if (answer.getVerdict() == Verdict.VERDICT_STOP) {
            return answer.getRefusal();
        }
        Reservation raised = answer.getReservation();
        hold = raised.getGranted(0).getValue();
        return null;
    }

    private CommitRequest commit(long actual) {
        var request = CommitRequest.newBuilder().setReservation(reservation);
        return request.addActual(tokens(actual)).build();
    }

    /** Commits, and looks at what a debit and another Commit are answered after that. */
    private String report(Verdict verdict, Refusal refusal, boolean unasked) throws Exception {
        long spent = ledger.commit(commit(used)).getSpent(0).getValue();
        String ended = debit(used).getError().getReason().name();
        stream.halfClose();
        String error = "null";
        try {
            ledger.commit(commit(used + 1));
        } catch (StatusException failed) {
            error = explain(failed);
        }
        return String.format(
                "{\"used\":%d,\"verdict\":\"%s\",\"refusal\":\"%s\",\"account\":\"%s\","
                        + "\"unasked\":%b,\"spent\":%d,\"ended\":\"%s\",\"error\":%s}",
                used, verdict, refusal.getReason(), refusal.getAccount(),
                unasked, spent, ended, error);
    }

    /** The ErrorInfo of a failed call. */
    private static String explain(StatusException failed) throws Exception {
        for (Any detail : StatusProto.fromThrowable(failed).getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                ErrorInfo info = detail.unpack(ErrorInfo.class);
                return String.format(
                        "{\"code\":%d,\"reason\":\"%s\",\"domain\":\"%s\"}",
                        Status.fromThrowable(failed).getCode().value(),
                        info.getReason(), info.getDomain());
            }
        }
        return "null";
    }
}
