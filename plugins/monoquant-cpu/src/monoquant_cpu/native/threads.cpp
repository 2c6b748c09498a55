// Flags: none beyond the common ones.
#include "threads.h"

#include <pthread.h>
#include <signal.h>

namespace mq {
namespace {

constexpr int32_t kMaxWorkers = 255;
constexpr double kWorthAThread = 50e3;  // nanoseconds; waking a sleeping thread takes 5 to 20 microseconds

struct Job {
    Task task;
    void *context;
    int64_t tasks;
    int64_t next;  // atomic
};

// Everything but `in_use` is guarded by `lock`.
struct Pool {
    pthread_mutex_t in_use;  // held by the caller whose job runs
    pthread_mutex_t lock;
    pthread_cond_t opened, left;
    int32_t workers;   // threads alive
    int32_t openings;  // workers that may still join the job
    int32_t joined;    // workers that ever joined it
    int32_t active;    // workers inside it now
    Job *job;
};

Pool pool;
pthread_once_t pool_once = PTHREAD_ONCE_INIT;

void reset_pool() {
    pthread_mutex_init(&pool.in_use, nullptr);
    pthread_mutex_init(&pool.lock, nullptr);
    pthread_cond_init(&pool.opened, nullptr);
    pthread_cond_init(&pool.left, nullptr);
    pool.workers = pool.openings = pool.joined = pool.active = 0;
    pool.job = nullptr;
}

void create_pool() {
    reset_pool();
    // Only the thread that called fork() lives on in the child, and locks may be held by threads that do not.
    pthread_atfork(nullptr, nullptr, reset_pool);
}

void work(Job *job, int32_t slot) {
    for (;;) {
        const int64_t task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (task >= job->tasks) return;
        job->task(job->context, task, slot);
    }
}

void *worker(void *) {
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.openings == 0) pthread_cond_wait(&pool.opened, &pool.lock);
        --pool.openings;
        ++pool.active;
        const int32_t slot = ++pool.joined;
        Job *job = pool.job;
        pthread_mutex_unlock(&pool.lock);
        work(job, slot);
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0) pthread_cond_signal(&pool.left);
    }
    return nullptr;
}

// With `lock` held. Fewer workers than wanted are no error: the others and the caller do the work.
void hire(int32_t wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the program
    while (pool.workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, worker, nullptr) != 0) break;
        pthread_detach(thread);
        ++pool.workers;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void run_with_workers(Job *job, int32_t workers) {
    pthread_mutex_lock(&pool.lock);
    if (pool.workers < workers) hire(workers);
    pool.job = job;
    pool.joined = 0;
    pool.openings = workers;
    pthread_cond_broadcast(&pool.opened);
    pthread_mutex_unlock(&pool.lock);

    work(job, 0);

    pthread_mutex_lock(&pool.lock);
    pool.openings = 0;  // nothing is left to do: do not wait for workers that have not woken up yet
    while (pool.active != 0) pthread_cond_wait(&pool.left, &pool.lock);
    pool.job = nullptr;
    pthread_mutex_unlock(&pool.lock);
}

}  // namespace

void run_tasks(Task task, void *context, int64_t tasks, int32_t threads) {
    Job job = {task, context, tasks, 0};
    int64_t workers = (threads < tasks ? threads : tasks) - 1;
    if (workers > kMaxWorkers) workers = kMaxWorkers;
    if (workers > 0) {
        pthread_once(&pool_once, create_pool);
        if (pthread_mutex_trylock(&pool.in_use) == 0) {
            run_with_workers(&job, static_cast<int32_t>(workers));
            pthread_mutex_unlock(&pool.in_use);
            return;
        }
    }
    work(&job, 0);
}

int32_t useful_threads(int32_t threads, double nanoseconds) {
    const double useful = 1 + nanoseconds / kWorthAThread;
    if (threads > kMaxWorkers + 1) threads = kMaxWorkers + 1;
    if (threads < 1) return 1;
    return useful < threads ? static_cast<int32_t>(useful) : threads;
}

}  // namespace mq
