import bursar.v1.Ledger.Advice;
import bursar.v1.Ledger.Amount;
import bursar.v1.Ledger.CommitRequest;
import bursar.v1.Ledger.DebitRequest;
import bursar.v1.Ledger.DebitResponse;
import bursar.v1.Ledger.ReserveRequest;
import bursar.v1.Ledger.ReserveResponse;
import bursar.v1.Ledger.Verdict;
import bursar.v1.LedgerServiceGrpc;
import bursar.v1.LedgerServiceGrpc.LedgerServiceBlockingStub;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.util.UUID;

/**
 * An agent that pays for every token: it reserves, debits as it goes, follows advice, is cut off
 * where the budget ends, and commits what it used.
 *
 * <pre>
 * BURSAR_TARGET=unix:/run/bursar/bursar.sock \
 *     java -cp 'target/classes:target/dependency/*' Agent ACCOUNT TOKENS
 * </pre>
 *
 * BURSAR_TLS_CA names the authorities to trust, and turns TLS on; BURSAR_TOKEN is shown, if it is set.
 */
public final class Agent {
    private final LedgerServiceBlockingStub ledger;

    private Agent(LedgerServiceBlockingStub ledger) {
        this.ledger = ledger;
    }

    public static void main(String[] args) throws IOException {
        String target = System.getenv("BURSAR_TARGET");
        if (args.length != 2 || target == null || target.isEmpty()) {
            System.err.println("usage: BURSAR_TARGET=ADDRESS Agent ACCOUNT TOKENS");
            System.exit(1);
        }
        var channel = connect(target, System.getenv("BURSAR_TLS_CA"));
        var ledger = LedgerServiceGrpc.newBlockingStub(channel);
        String token = System.getenv("BURSAR_TOKEN");
        if (token != null) {
            var shown = new Metadata();
            shown.put(
                    Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER),
                    "Bearer " + token);
            ledger = ledger.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(shown));
        }
        int code = 0;
        try {
            new Agent(ledger).run(args[0], Long.parseLong(args[1]));
        } catch (Refused | RuntimeException failed) {
            System.err.println(failed.getMessage());
            code = 1;
        }
        System.exit(code);
    }

    private void run(String account, long wish) throws Refused {
        ReserveResponse answer = ledger.reserve(ReserveRequest.newBuilder()
                .setAccount(account)
                .setIdempotencyKey(UUID.randomUUID().toString()) // a repeat reserves nothing more
                .addAmounts(tokens(wish))
                .addMinAcceptable(tokens(1)) // less than the wish is better than nothing
                .build());
        if (answer.getVerdict() == Verdict.VERDICT_STOP) { // an answer, not an error
            throw new Refused(answer.getRefusal().getAccount(), answer.getRefusal().getReason());
        }
        var reservation = answer.getReservation();
        System.out.printf("reserved %d of %d tokens%n", reservation.getGranted(0).getValue(), wish);
        long used = generate(reservation.getId(), wish);
        ledger.commit(CommitRequest.newBuilder()
                .setReservation(reservation.getId())
                .addActual(tokens(used))
                .build());
        System.out.printf("spent %d tokens%n", used);
    }

    /** Generates up to {@code most} tokens, one debit each; returns how many. */
    private long generate(String reservation, long most) {
        long used = 0;
        double temperature = 0.8;
        var verdict = Verdict.VERDICT_OK;
        while (used < most) {
            // Ask first, work then. Counts are cumulative: "used so far", never "used since".
            DebitResponse answer = ledger.debit(DebitRequest.newBuilder()
                    .setReservation(reservation)
                    .addUsed(tokens(used + 1))
                    .build());
            if (answer.getVerdict() == Verdict.VERDICT_STOP) {
                var reason = answer.getRefusal().getReason();
                System.out.printf("%d tokens: %s, %s%n", used, answer.getVerdict(), reason);
                break;
            }
            model(temperature);
            used++;
            if (answer.getVerdict() == verdict) {
                continue;
            }
            verdict = answer.getVerdict();
            System.out.printf("%d tokens: %s%n", used, verdict);
            Advice advice = answer.getAdvice();
            if (advice.hasTemperature()) {
                temperature = advice.getTemperature();
                System.out.println("temperature " + temperature);
            }
            if (advice.hasMaxNewTokens()) {
                most = Math.min(most, used + advice.getMaxNewTokens());
                System.out.printf("at most %d tokens%n", most);
            }
        }
        return used;
    }

    /** One forward pass of your model. */
    private void model(double temperature) {}

    private static Amount tokens(long count) {
        return Amount.newBuilder().setUnit("tokens").setValue(count).build();
    }

    private static ManagedChannel connect(String target, String authorities) throws IOException {
        if (target.startsWith("unix:")) {
            var path = new DomainSocketAddress(target.substring("unix:".length()));
            return NettyChannelBuilder.forAddress(path)
                    .channelType(EpollDomainSocketChannel.class)
                    .eventLoopGroup(new EpollEventLoopGroup(1))
                    .withOption(ChannelOption.SO_KEEPALIVE, null) // a Unix socket has none
                    .overrideAuthority("localhost") // any other would be refused
                    .usePlaintext()
                    .build();
        }
        ChannelCredentials security = InsecureChannelCredentials.create();
        if (authorities != null) {
            security = TlsChannelCredentials.newBuilder().trustManager(new File(authorities)).build();
        }
        return Grpc.newChannelBuilder(target, security).build();
    }

    private static final class Refused extends Exception {
        private static final long serialVersionUID = 1;

        Refused(String account, Object reason) {
            super("refused by " + account + ": " + reason);
        }
    }
}
