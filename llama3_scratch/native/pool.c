/* A pool of threads for pieces of work that take microseconds.
 *
 * A thread that waits first looks again and again, then yields its core each time, and at last sleeps: within a token
 * it has to start in less than a microsecond, between two answers it must cost nothing, and when another program has
 * taken a core away, waiting must not keep it from coming back.
 */
#include "native.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { MOST_THREADS = 256, LOOKS = 2000, YIELDS = 4000 };

static struct {
    pthread_mutex_t call, sleep; /* one `run` at a time; around falling asleep and waking */
    pthread_cond_t wake;
    Work *work;
    void *argument;
    int wanted, threads; /* with the caller's own */
    pthread_t ids[MOST_THREADS];
    atomic_int round, sleeping, soon, arrived, phase;
    atomic_int counters[COUNTERS];
} pool = {.call = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .wanted = 1, .threads = 1};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Wait until *value isn't `old` any more; 0 if that took too long to stay awake for. */
static int changes(atomic_int *value, int old, int most) {
    for (int i = 0; i < most; i++) {
        if (atomic_load_explicit(value, memory_order_acquire) != old) return 1;
        if (i < LOOKS) pause_briefly();
        else sched_yield();
    }
    return 0;
}

void meet(void) {
    int phase = atomic_load_explicit(&pool.phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) == pool.threads - 1) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.phase, phase + 1, memory_order_release);
    } else {
        while (!changes(&pool.phase, phase, 1 << 30)) {}
    }
}

int next_of(int counter, int size) {
    return atomic_fetch_add_explicit(&pool.counters[counter], size, memory_order_relaxed);
}

static void *worker(void *unused) {
    (void)unused;
    int seen = 0;
    for (;;) {
        int most = atomic_load_explicit(&pool.soon, memory_order_relaxed) ? LOOKS + YIELDS : 1;
        if (!changes(&pool.round, seen, most)) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = atomic_load(&pool.round);
        if (!pool.work) return 0;
        pool.work(pool.argument);
        meet();
    }
}

static void start_round(Work *work, void *argument) {
    pool.work = work;
    pool.argument = argument;
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
}

/* End the threads that there are and start others. Without the right to start as many, fewer do. */
static void change_threads(int wanted) {
    start_round(0, 0);
    for (int i = 1; i < pool.threads; i++) pthread_join(pool.ids[i], 0);
    atomic_store(&pool.round, 0);
    pool.wanted = wanted;
    pool.threads = 1;
    while (pool.threads < wanted && pool.threads < MOST_THREADS &&
           !pthread_create(&pool.ids[pool.threads], 0, worker, 0))
        pool.threads++;
}

static void forget_threads(void) { /* in a forked child there are none */
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t awake = PTHREAD_COND_INITIALIZER;
    pool.call = pool.sleep = fresh;
    pool.wake = awake;
    pool.wanted = pool.threads = 1;
    atomic_store(&pool.sleeping, 0);
    atomic_store(&pool.arrived, 0);
}

void run(Work *work, void *argument, int threads, int last) {
    static int prepared = 0;
    pthread_mutex_lock(&pool.call);
    if (!prepared) prepared = !pthread_atfork(0, 0, forget_threads);
    if (threads != pool.wanted) change_threads(threads);
    for (int i = 0; i < COUNTERS; i++) atomic_store_explicit(&pool.counters[i], 0, memory_order_relaxed);
    atomic_store(&pool.soon, !last);
    if (pool.threads > 1) start_round(work, argument);
    work(argument);
    meet();
    pthread_mutex_unlock(&pool.call);
}
