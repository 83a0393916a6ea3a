// The fibers of cuda_shim.h, their two schedules, and memory between guards.
#include "cuda_shim.h"

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

extern "C" {
Index shim_thread, shim_block, shim_block_size, shim_grid_size;
long long shim_block_number = 0;
}

namespace {
enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
    ucontext_t start;
    jmp_buf where;
    bool made = false;
    State state;
};

constexpr size_t STACK = 128 << 10;
constexpr int MOST = 1024;
std::vector<Fiber> fibers;
char* stacks;
int current;
jmp_buf scheduler, out;
uint64_t exchanged[MOST];
void (*body)(void*);
void* argument;
std::string message;

void place(int i) {
    const Index& n = shim_block_size;
    shim_thread = {i % n.x, i / n.x % n.y, i / (n.x * n.y)};
}

void pause(State state) {
    fibers[current].state = state;
    if (!_setjmp(fibers[current].where)) _longjmp(scheduler, 1);
}

void enter() {
    for (;;) {
        body(argument);
        pause(DONE);
    }
}

void resume(int i) {
    current = i;
    place(i);
    if (_setjmp(scheduler)) return;
    Fiber& f = fibers[i];
    if (f.made) _longjmp(f.where, 1);
    f.made = true;
    getcontext(&f.start);
    f.start.uc_stack = {stacks + STACK * i, 0, STACK};
    f.start.uc_link = nullptr;
    makecontext(&f.start, enter, 0);
    setcontext(&f.start);
}

// Let all of a range go on that wait at one kind of barrier, if nobody is elsewhere.
bool release(int begin, int end, State at) {
    int waiting = 0, gone = 0;
    for (int i = begin; i < end; i++) {
        waiting += fibers[i].state == at;
        gone += fibers[i].state == DONE;
    }
    if (waiting == 0 || waiting + gone < end - begin) return false;
    if (gone) shim_fail(at == AT_BLOCK ? "a barrier of the block that threads left before, number"
                                       : "a call of the warp that lanes left before, number", gone);
    for (int i = begin; i < end; i++) fibers[i].state = READY;
    return true;
}

bool run_ready(int begin, int end) {
    bool any = false;
    for (int i = begin; i < end; i++)
        if (fibers[i].state == READY) {
            resume(i);
            any = true;
        }
    return any;
}

void run_block(int n, int schedule) {
    shim_block_number++;
    for (int i = 0; i < n; i++) fibers[i].state = READY;
    for (;;) {
        bool moved = false;
        if (schedule == 0) {  // every thread in turn
            moved |= run_ready(0, n);
            for (int w = 0; w < n; w += 32) moved |= release(w, w + 32, AT_WARP);
        } else {  // a warp as far as it goes, the last one first
            for (int w = n - 32; w >= 0; w -= 32)
                while (run_ready(w, w + 32) | release(w, w + 32, AT_WARP)) moved = true;
        }
        moved |= release(0, n, AT_BLOCK);
        if (moved) continue;
        for (int i = 0; i < n; i++)
            if (fibers[i].state != DONE) shim_fail("threads wait at different barriers; one of them is", i);
        return;
    }
}

void on_fault(int, siginfo_t* info, void*) {
    char text[200];
    snprintf(text, sizeof text, "an access outside of the arrays, at %p, by thread (%u, %u, %u) of block (%u, %u, %u)",
             info->si_addr, shim_thread.x, shim_thread.y, shim_thread.z, shim_block.x, shim_block.y, shim_block.z);
    message = text;
    _longjmp(out, 1);
}
}  // namespace

extern "C" {
const char* shim_message() { return message.c_str(); }

void shim_fail(const char* what, long long value) {
    char text[200];
    snprintf(text, sizeof text, "%s %lld, by thread (%u, %u, %u) of block (%u, %u, %u)", what, value, shim_thread.x,
             shim_thread.y, shim_thread.z, shim_block.x, shim_block.y, shim_block.z);
    message = text;
    _longjmp(out, 1);
}

void shim_wait_block() { pause(AT_BLOCK); }
void shim_wait_warp() { pause(AT_WARP); }

uint64_t shim_exchange(uint64_t value, unsigned lane) {
    exchanged[current] = value;
    pause(AT_WARP);
    value = exchanged[current / 32 * 32 + lane];
    pause(AT_WARP);
    return value;
}

unsigned shim_ballot(int vote) {
    exchanged[current] = vote;
    pause(AT_WARP);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++) votes |= unsigned(exchanged[current / 32 * 32 + i]) << i;
    pause(AT_WARP);
    return votes;
}

int shim_run(void (*kernel)(void*), void* arguments, const unsigned* grid, const unsigned* block, int schedule) {
    body = kernel;
    argument = arguments;
    shim_grid_size = {grid[0], grid[1], grid[2]};
    shim_block_size = {block[0], block[1], block[2]};
    const int n = block[0] * block[1] * block[2];
    struct sigaction act {}, old_segv, old_bus;
    act.sa_sigaction = on_fault;
    act.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &act, &old_segv);
    sigaction(SIGBUS, &act, &old_bus);
    volatile int failed = 1;
    if (!_setjmp(out)) {
        if (n % 32 || n > MOST) shim_fail("a block whose threads are no multiple of 32 up to 1024:", n);
        if (grid[1] > 65535 || grid[2] > 65535) shim_fail("more blocks along y or z than a GPU has:", grid[1]);
        if (!stacks) {
            stacks = static_cast<char*>(mmap(nullptr, STACK * MOST, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
            fibers.resize(MOST);
        }
        for (unsigned z = 0; z < grid[2]; z++)
            for (unsigned y = 0; y < grid[1]; y++)
                for (unsigned x = 0; x < grid[0]; x++) {
                    shim_block = {x, y, z};
                    run_block(n, schedule);
                }
        failed = 0;
    } else {
        for (Fiber& f : fibers) f.made = false;  // they are in the middle of something
    }
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    return failed;
}

// A copy of an array that ends, but for less than 16 bytes, at memory that nobody may touch, and begins after such.
// Its address is that of the array modulo 16. The bytes that are left over are poisoned.
void* shim_guard(const void* from, size_t size) {
    const size_t page = sysconf(_SC_PAGESIZE), slack = (16 - (reinterpret_cast<uintptr_t>(from) + size) % 16) % 16;
    const size_t inside = (size + slack + page - 1) / page * page;
    char* begin = static_cast<char*>(
        mmap(nullptr, inside + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(begin, page, PROT_NONE);
    mprotect(begin + page + inside, page, PROT_NONE);
    memset(begin + page, 0xFF, inside);
    char* copy = begin + page + inside - slack - size;
    memcpy(copy, from, size);
    return copy;
}

// Copy back and free; nonzero if bytes beside the array were written.
int shim_unguard(void* guarded, void* to, size_t size) {
    const size_t page = sysconf(_SC_PAGESIZE);
    char* copy = static_cast<char*>(guarded);
    char* end = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(copy) + size + page - 1) / page * page);
    char* begin = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(copy) / page * page);
    int touched = 0;
    for (char* p = begin; p < copy; p++) touched |= *p != char(0xFF);
    for (char* p = copy + size; p < end; p++) touched |= *p != char(0xFF);
    if (to) memcpy(to, copy, size);
    munmap(begin - page, end - begin + 2 * page);
    return touched;
}
}
