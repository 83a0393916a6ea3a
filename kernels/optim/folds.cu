// What clipping and mixed precision need of a flat buffer. T: its type.
typedef Wide<T>::type A;
constexpr long long CHUNK = 4096;

// One partial sum per chunk, in float64: lane i of eight adds up elements i, i + 8 and so on, the first lane the rest of
// a chunk that is not full; as the compiled code of the CPU does, to the bit.
KERNEL sums_of_squares(const T* x, double* sums, long long count) {
    const long long chunk = own_index() / 8, begin = chunk * CHUNK;
    const int lane = threadIdx.x % 8;
    const long long end = begin + CHUNK < count ? begin + CHUNK : count, whole = end - (end - begin) % 8;
    double sum = 0;
    for (long long i = begin + lane; i < whole; i += 8) sum += double(widen(x[i])) * double(widen(x[i]));
    if (lane == 0)
        for (long long i = whole < begin ? begin : whole; i < end; i++) sum += double(widen(x[i])) * double(widen(x[i]));
    for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0 && begin < count) sums[chunk] = sum;
}

// Their sum, one after the other: a block reads them, one thread adds.
KERNEL total(const double* sums, double* out, long long count) {
    SHARED(double, some, 256);
    double sum = 0;
    for (long long begin = 0; begin < count; begin += 256) {
        __syncthreads();
        if (begin + threadIdx.x < count) some[threadIdx.x] = sums[begin + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0)
            for (int i = 0; i < 256 && begin + i < count; i++) sum += some[i];
    }
    if (threadIdx.x == 0) *out = sum;
}

// What a step needs to clip: the factor of the gradients, and whether they are not finite.
KERNEL clip(const double* square, float* scale, int* skip, double max_norm) {
    if (threadIdx.x) return;
    const double norm = sqrt(*square), factor = max_norm / (norm + 1e-6);
    *scale = float(factor < 1 ? factor : 1.0);
    *skip = !(norm - norm == 0);
}

// *bad, which was 0, becomes 1 if an element is not finite.
KERNEL find_bad(const T* x, int* bad, long long count) {
    bool found = false;
    for (long long at = blockIdx.x * CHUNK + threadIdx.x, i = 0; i < 16 && at < count; at += 256, i++)
        found |= !(widen(x[at]) - widen(x[at]) == 0);
    if (__any_sync(~0u, found) && threadIdx.x % 32 == 0) atomicOr(bad, 1);
}

// The same, and x is multiplied by *factor before.
KERNEL unscale(T* x, const float* factor, int* bad, long long count) {
    bool found = false;
    for (long long at = blockIdx.x * CHUNK + threadIdx.x, i = 0; i < 16 && at < count; at += 256, i++) {
        x[at] = narrow<T>(widen(x[at]) * A(*factor));
        found |= !(widen(x[at]) - widen(x[at]) == 0);
    }
    if (__any_sync(~0u, found) && threadIdx.x % 32 == 0) atomicOr(bad, 1);
}

// The scale of the loss after a step: less after one that was skipped, more after interval others.
KERNEL update_scale(float* scale, int* tracker, const int* bad, double growth, double backoff, long long interval) {
    if (threadIdx.x) return;
    if (*bad) {
        *scale = float(*scale * backoff);
        *tracker = 0;
    } else if (++*tracker == interval) {
        const float grown = float(*scale * growth);
        if (grown - grown == 0) *scale = grown;
        *tracker = 0;
    }
}

// What Adam's and LAMB's numbers are made of at the step that this is, not counting those that were skipped; one more was
// if *skip. They are numbers[at] and the next: of Adam the size of the step and a root, of LAMB what both are made of.
KERNEL count_step(double* numbers, int* skipped, const int* skip, long long at, long long adam, long long tried,
                  double lr, double beta1, double beta2) {
    if (threadIdx.x) return;
    const double step = double(tried - *skipped), first = 1 - pow(beta1, step), second = 1 - pow(beta2, step);
    numbers[at] = adam ? lr / first : first;
    numbers[at + 1] = adam ? sqrt(second) : second;
    if (*skip) ++*skipped;
}

KERNEL scale(T* x, const float* factor, long long count) {
    const long long at = own_index();
    if (at < count) x[at] = narrow<T>(widen(x[at]) * A(*factor));
}
