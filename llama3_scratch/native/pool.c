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

enum { MAX_LOOKS = 2000, MAX_YIELDS = 4000 }; /* of a thread that waits, before it yields and before it sleeps */

static struct {
    pthread_mutex_t call, sleep; /* one `run` at a time; around falling asleep and waking */
    pthread_cond_t wake;
    Work *work; /* 0: the threads are to end */
    void *argument;
    atomic_int *done, *taken;  /* of each phase the pieces finished; of each share of it the pieces taken */
    int room, wanted, threads; /* the last two with the caller's own */
    pthread_t ids[MAX_THREADS];
    atomic_int round, sleeping, soon, open, inside;
} pool = {.call = PTHREAD_MUTEX_INITIALIZER,
          .sleep = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .wanted = 1,
          .threads = 1};

static _Thread_local int own; /* this thread's number; the caller's is 0 */
static _Thread_local const char *ahead, *ahead_end;

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline void wait_a_little(int *looked) {
    if ((*looked)++ < MAX_LOOKS) pause_briefly();
    else sched_yield();
}

static int begin_of(int share, int total) { return (int)((int64_t)total * share / pool.threads); }

int thread_number(void) { return own; }

int share_of(int pieces) { return begin_of(own, pieces); }

int next_range(Range *r) {
    if (r->end > r->begin) atomic_fetch_add_explicit(&pool.done[r->phase], r->end - r->begin, memory_order_release);
    for (; r->shares < pool.threads; r->shares++) { /* shares that this thread has seen the end of */
        int share = (own + r->shares) % pool.threads, end = begin_of(share + 1, r->total);
        int begin = begin_of(share, r->total) + atomic_fetch_add_explicit(&pool.taken[r->phase * pool.threads + share],
                                                                          r->size, memory_order_relaxed);
        if (begin < end) {
            r->begin = begin;
            r->end = begin + r->size < end ? begin + r->size : end;
            return 1;
        }
    }
    return 0;
}

void prefetch_while_waiting(const char *begin, const char *end) {
    ahead = begin;
    ahead_end = end;
}

void wait_for(int phase, int pieces) {
    int looked = 0;
    while (atomic_load_explicit(&pool.done[phase], memory_order_acquire) < pieces) {
        if (ahead < ahead_end) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += 64;
        } else {
            wait_a_little(&looked);
        }
    }
}

static void *worker(void *number) {
    int seen = 0;
    own = (int)(intptr_t)number;
    for (;;) {
        int looked = 0, enough = atomic_load(&pool.soon) ? MAX_LOOKS + MAX_YIELDS : 1;
        while (atomic_load_explicit(&pool.round, memory_order_acquire) == seen && looked < enough)
            wait_a_little(&looked);
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = atomic_load(&pool.round);
        atomic_fetch_add(&pool.inside, 1); /* then look whether it is open: `run` closes it, then looks who is inside */
        int open = atomic_load(&pool.open), end = 0; /* looked at once: it may open while we look */
        if (open && pool.work) pool.work(pool.argument);
        else end = open;
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
    while (pool.threads < wanted && !pthread_create(&pool.ids[pool.threads], 0, worker, (void *)(intptr_t)pool.threads))
        pool.threads++;
}

/* A fork waits until no job runs, so that the child gets the pool as it is between two jobs. */
static void before_fork(void) { pthread_mutex_lock(&pool.call); }

static void after_fork(void) { pthread_mutex_unlock(&pool.call); }

static void in_child(void) { /* there are no threads */
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
    if (!prepared) prepared = !pthread_atfork(before_fork, after_fork, in_child);
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    if (threads != pool.wanted) change_threads(threads);
    int counters = phases * (pool.threads + 1);
    if (counters > pool.room) {
        free(pool.done);
        pool.done = malloc(sizeof(atomic_int) * counters);
        pool.room = pool.done ? counters : 0;
    }
    if (pool.done) {
        pool.taken = pool.done + phases;
        for (int i = 0; i < counters; i++) atomic_init(&pool.done[i], 0);
        atomic_store(&pool.soon, !last);
        if (pool.threads > 1) open_round(work, argument);
        work(argument);
        atomic_store(&pool.open, 0);
        int looked = 0; /* nobody may look at the phases any more: the next job has others */
        while (atomic_load(&pool.inside)) wait_a_little(&looked);
    }
    int done = pool.room >= counters;
    pthread_mutex_unlock(&pool.call);
    return done;
}

/* End the threads and free the pool's memory; the next job starts them again. */
EXPORT void release(void) {
    pthread_mutex_lock(&pool.call);
    change_threads(1);
    free(pool.done);
    pool.done = 0;
    pool.room = 0;
    pthread_mutex_unlock(&pool.call);
}
