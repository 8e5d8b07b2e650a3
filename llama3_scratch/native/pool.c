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
#include <stdlib.h>

enum { MOST_THREADS = 256, LOOKS = 2000, YIELDS = 4000 };

typedef struct { atomic_int next, done; } Phase;

static struct {
    pthread_mutex_t call, sleep; /* one `run` at a time; around falling asleep and waking */
    pthread_cond_t wake;
    Work *work; /* 0: the threads are to end */
    void *argument;
    Phase *phases;
    int room, wanted, threads; /* the last two with the caller's own */
    pthread_t ids[MOST_THREADS];
    atomic_int round, sleeping, soon, open, inside;
} pool = {.call = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
          .wanted = 1, .threads = 1};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline void wait_a_little(int *looked) {
    if ((*looked)++ < LOOKS) pause_briefly();
    else sched_yield();
}

int next_of(int phase, int size) { return atomic_fetch_add(&pool.phases[phase].next, size); }

void finished(int phase, int pieces) { atomic_fetch_add_explicit(&pool.phases[phase].done, pieces, memory_order_release); }

void settle(int phase, int pieces) {
    int looked = 0;
    while (atomic_load_explicit(&pool.phases[phase].done, memory_order_acquire) < pieces) wait_a_little(&looked);
}

static void *worker(void *unused) {
    (void)unused;
    int seen = 0;
    for (;;) {
        int looked = 0, most = atomic_load(&pool.soon) ? LOOKS + YIELDS : 1;
        while (atomic_load_explicit(&pool.round, memory_order_acquire) == seen && looked < most) wait_a_little(&looked);
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = atomic_load(&pool.round);
        atomic_fetch_add(&pool.inside, 1); /* then look whether it is open: `run` closes it, then looks who is inside */
        int end = atomic_load(&pool.open) && !pool.work;
        if (atomic_load(&pool.open) && !end) pool.work(pool.argument);
        atomic_fetch_sub(&pool.inside, 1);
        if (end) return 0;
    }
}

static void open_round(Work *work, void *argument) {
    pool.work = work;
    pool.argument = argument;
    atomic_store(&pool.open, 1);
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
}

/* End the threads that there are and start others. Without the right to start as many, fewer do. */
static void change_threads(int wanted) {
    open_round(0, 0);
    for (int i = 1; i < pool.threads; i++) pthread_join(pool.ids[i], 0);
    atomic_store(&pool.open, 0);
    atomic_store(&pool.round, 0);
    pool.wanted = wanted;
    pool.threads = 1;
    while (pool.threads < wanted && pool.threads < MOST_THREADS && !pthread_create(&pool.ids[pool.threads], 0, worker, 0))
        pool.threads++;
}

static void forget_threads(void) { /* in a forked child there are none */
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t awake = PTHREAD_COND_INITIALIZER;
    pool.call = pool.sleep = fresh;
    pool.wake = awake;
    pool.wanted = pool.threads = 1;
    atomic_store(&pool.sleeping, 0);
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.open, 0);
}

int run(Work *work, void *argument, int phases, int threads, int last) {
    static int prepared = 0;
    pthread_mutex_lock(&pool.call);
    if (!prepared) prepared = !pthread_atfork(0, 0, forget_threads);
    if (threads != pool.wanted) change_threads(threads);
    if (phases > pool.room) {
        free(pool.phases);
        pool.phases = malloc(sizeof(Phase) * phases);
        pool.room = pool.phases ? phases : 0;
    }
    if (pool.phases) {
        for (int i = 0; i < phases; i++) {
            atomic_init(&pool.phases[i].next, 0);
            atomic_init(&pool.phases[i].done, 0);
        }
        atomic_store(&pool.soon, !last);
        if (pool.threads > 1) open_round(work, argument);
        work(argument);
        atomic_store(&pool.open, 0);
        int looked = 0; /* nobody may look at the phases any more: the next job has others */
        while (atomic_load(&pool.inside)) wait_a_little(&looked);
    }
    pthread_mutex_unlock(&pool.call);
    return pool.room >= phases;
}
