// A small pool of threads that sleep between calls.
#pragma once
#include <stdint.h>

namespace mq {

// One task of a job. slot: 0 (the caller) .. threads - 1, unique among the tasks that run at the same time.
using Task = void (*)(void *context, int64_t task, int32_t slot);

// Run tasks 0 .. tasks - 1, each once, on at most `threads` threads, and return when all are done. Which thread runs a
// task is left to chance, so a task's result must not depend on it. Safe to call from several threads: whoever finds
// the pool in use works alone. Safe after fork(): the child starts without workers.
void run_tasks(Task task, void *context, int64_t tasks, int32_t threads);

// How many of `threads` to use for work that takes about `nanoseconds` on one.
int32_t useful_threads(int32_t threads, double nanoseconds);

}  // namespace mq
