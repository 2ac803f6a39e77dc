import java.io.FileOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/** A pool of threads that make garbage, sort, and throw; compiled while they run. The first argument tells how it goes. */
public class Worker {
    static int work(int seed) {
        Map<String, Integer> counts = new HashMap<>();
        for (int i = 0; i < 20000; i++) {
            counts.merge("key " + (seed * 31 + i) % 997, 1, Integer::sum);
        }
        int sum = counts.values().stream().sorted().mapToInt(Integer::intValue).sum();
        try {
            Object nothing = counts.get("no such key");
            return nothing.hashCode();
        } catch (NullPointerException expected) {
            return sum;
        }
    }

    /** Not by java.nio, whose channels keep half of a pair of sockets open for as long as the machine runs. */
    static void say(String path, String text) throws IOException {
        try (FileOutputStream status = new FileOutputStream(path)) {
            status.write(text.getBytes());
        }
    }

    public static void main(String[] args) throws Exception {
        String status = args[0];
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<long[]> kept = new ArrayList<>();
        for (int i = 0; i < 100; i++) {
            long[] some = new long[10000];
            for (int k = 0; k < some.length; k++) some[k] = (long) i * k * 0x9e3779b97f4a7c15L;
            kept.add(some);
        }
        for (int n = 1;; n++) {
            List<Future<Integer>> all = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                int seed = n + i;
                all.add(pool.submit(() -> work(seed)));
            }
            for (Future<Integer> one : all) {
                if (one.get(60, TimeUnit.SECONDS) != 20000) {
                    say(status, "BAD " + one.get() + "\n");
                    System.exit(1);
                }
            }
            long[] some = kept.get(n % 100);
            for (int k = 0; k < some.length; k++) {
                if (some[k] != (long) (n % 100) * k * 0x9e3779b97f4a7c15L) {
                    say(status, "BAD a number has changed\n");
                    System.exit(1);
                }
            }
            say(status, "OK " + n + "\n");
        }
    }
}
