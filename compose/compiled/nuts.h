// The No-U-Turn sampler of boltzmix/compose/kernels/nuts.py for W chains at once, each at a leaf of its own.
//
// One call of evaluate() moves every lane by one leapfrog. A lane whose transition ends begins its next one at once,
// and one whose chain has had its turn takes another: nobody waits for the longest trajectory.
//
// Included after the prelude, and after D and evaluate() are defined. Numbers of all lanes ("columns") are arrays of V;
// what belongs to a single lane ("rows") lies contiguously, PITCH numbers with zeros behind the first D.
//
// Leaves of a trajectory are numbered in the direction in which it grows: its 2^d leaves so far are 0, ..., 2^d - 1 and
// the new half is k = 2^d, ..., 2^(d + 1) - 1. Sub-trees are then the aligned blocks of a binary counter. A tree of 2^l
// leaves ends with leaf k if k has at least l trailing ones, and leaf k is the first of a right neighbour of one size
// only, 2^l with l its trailing zeros. Hence one place for each number of trailing zeros (even k) and one for each
// number of trailing ones (odd k) hold every leaf on the boundary of a tree that is still to be merged.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace nuts {

#if defined(__AVX512F__)
constexpr int ROW = 64 / sizeof(T);
#elif defined(__AVX__)
constexpr int ROW = 32 / sizeof(T);
#else
constexpr int ROW = 16 / sizeof(T);
#endif
constexpr int BLOCK = W > ROW ? W : ROW;
constexpr int PITCH = (D + BLOCK - 1) / BLOCK * BLOCK;
constexpr int POINTS = 5;  // the chosen one, the best of the new half, two ends, and the current one
constexpr int TURN = 8;    // transitions of a chain before another takes its lane, where chains wait
constexpr int TILE = 8;    // sums that a matrix product keeps in registers
constexpr T INF = std::numeric_limits<T>::infinity();
constexpr T LEAST = sizeof(T) == 4 ? -80 : -700;  // exp of it is positive, and nothing beside 1

typedef T Row __attribute__((vector_size(ROW * sizeof(T)), may_alias));
typedef uint64_t Bits __attribute__((vector_size(W * sizeof(uint64_t))));
typedef std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type Word;
typedef Word Words __attribute__((vector_size(W * sizeof(Word))));

enum Kind : int64_t { PLAIN, DIAGONAL, SEPARATE, MATRIX, LOW_RANK };

// What Python hands over; pointers are to contiguous arrays.
struct Job {
    int64_t chains, steps, max_depth, kind, rank;
    double max_energy_error;
    T *x, *energy, *score;               // (chains, D), (chains,), (chains, D): where they start, and in the end stand
    const T *normals, *step_size;        // (steps, chains, D), (chains,)
    const T *scale, *basis, *stretch;    // of the mass: (D,) or (chains, D) or F (D, D); (D, rank); (rank,)
    const uint64_t* seeds;               // (chains,)
    const T* uniforms;  // (steps, 2 max_depth + 2^max_depth - 1, chains), or null: drawn from the seeds
    T *xs, *energies, *acceptance, *hamiltonian;  // (steps, chains, D), (steps, chains)
    uint8_t *accepted, *divergent;                // (steps, chains)
    int64_t* leapfrogs;                           // (steps, chains)
};

// ---------------------------------------------------------------- random bits

// xoshiro256++ (Blackman and Vigna, 2021), of one lane or of all.
template <class X>
static inline X next(X& a, X& b, X& c, X& d) {
    X sum = a + d, result = ((sum << 23) | (sum >> 41)) + a, t = b << 17;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = (d << 45) | (d >> 19);
    return result;
}

// Number i of the sequence of a seed (splitmix64: Steele, Lea and Flood, 2014).
static inline uint64_t mixed(uint64_t seed, uint64_t i) {
    uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// The middle of one of 2^23 or 2^52 cells of (0, 1), of one lane or of all: never 0, never 1.
template <class X, class Word, class Long>
static inline X uniform(Long bits) {
    X u;
    Word word;
    if constexpr (sizeof(T) == 4) {
        if constexpr (std::is_integral<Long>::value) word = Word(bits >> 41);
        else word = __builtin_convertvector(bits >> 41, Word);
        word |= 0x3F800000u;
    } else {
        word = (bits >> 12) | 0x3FF0000000000000u;
    }
    std::memcpy(&u, &word, sizeof u);
    return u - T(1) + T(sizeof(T) == 4 ? 0x1p-24 : 0x1p-53);
}

// ---------------------------------------------------------------------- rows

// The sum of a in the entries of the first half, and that of b in those of the second.
template <int... I>
static inline Row sums(Row a, Row b, std::integer_sequence<int, I...>) {
    constexpr int H = ROW / 2;
    Row low = __builtin_shufflevector(a, b, (I < H ? I : I + H)...);
    Row both = low + __builtin_shufflevector(a, b, (I < H ? I + H : I + ROW)...);
    if constexpr (H > 1) both += __builtin_shufflevector(both, both, (I ^ 1)...);
    if constexpr (H > 2) both += __builtin_shufflevector(both, both, (I ^ 2)...);
    if constexpr (H > 4) both += __builtin_shufflevector(both, both, (I ^ 4)...);
    return both;
}

static inline T squares(const T* a) {
    Row total = {};
    for (int i = 0; i < PITCH; i += ROW) total += *(const Row*)(a + i) * *(const Row*)(a + i);
    return sums(total, total, std::make_integer_sequence<int, ROW>())[0];
}

// Rows of W x W numbers to columns: swap blocks off the diagonal, of half the size each time.
template <int H, int... I>
static inline void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
    V upper = __builtin_shufflevector(a, b, (I & H ? W + I - H : I)...);
    b = __builtin_shufflevector(a, b, (I & H ? W + I : I + H)...);
    a = upper;
}

template <int H>
static inline void transpose(V* block) {
    if constexpr (H > 0) {
#pragma GCC unroll 64
        for (int i = 0; i < W; ++i)
            if (!(i & H)) exchange<H>(block[i], block[i + H], std::make_integer_sequence<int, W>());
        transpose<H / 2>(block);
    }
}

// Columns to the rows of W lanes.
static inline void deal(const V* columns, T* const* rows) {
    for (int i = 0; i < D; i += W) {
        V block[W];
#pragma GCC unroll 64
        for (int j = 0; j < W; ++j) block[j] = columns[i + j];
        transpose<W / 2>(block);
#pragma GCC unroll 64
        for (int j = 0; j < W; ++j) std::memcpy(rows[j] + i, &block[j], sizeof(V));
    }
    if constexpr (BLOCK > W)
        for (int i = (D + W - 1) / W * W; i < PITCH; i += W)
            for (int j = 0; j < W; ++j) std::memset(rows[j] + i, 0, sizeof(V));
}

static inline void fetch(T* row, const T* numbers) {
    std::memcpy(row, numbers, D * sizeof(T));
    std::fill(row + D, row + PITCH, T(0));
}

// ---------------------------------------------------------------------- mass

// A matrix that multiplies columns, or one row, in the same order of additions.
struct Matrix {
    int rows, cols;
    std::vector<T> tiles;             // TILE rows side by side
    std::vector<std::pair<int, int>> spans;  // columns between which a tile is not zero

    Matrix(int rows, int cols, const T* entries, int down, int across) : rows(rows), cols(cols) {
        for (int i = 0; i < rows; i += TILE) {
            int low = cols, high = 0;
            for (int j = 0; j < cols; ++j)
                for (int k = i; k < i + TILE; ++k) {
                    T entry = k < rows ? entries[int64_t(k) * down + int64_t(j) * across] : T(0);
                    tiles.push_back(entry);
                    if (entry != 0) low = std::min(low, j), high = j + 1;
                }
            spans.emplace_back(low, high);
        }
    }

    template <class X>
    void times(const X* in, X* out) const {
        const T* tile = tiles.data();
        for (int i = 0; i < rows; i += TILE, tile += int64_t(TILE) * cols) {
            X sums[TILE] = {};
            auto [low, high] = spans[i / TILE];
            for (int j = low; j < high; ++j) {
                X v = in[j];
#pragma GCC unroll 8
                for (int k = 0; k < TILE; ++k) sums[k] += tile[TILE * j + k] * v;
            }
            for (int k = 0; k < TILE && i + k < rows; ++k) out[i + k] = sums[k];
        }
    }
};

// F of the inverse mass F F^T: a matrix, or S (1 + U s U^T) with diagonal S and s.
struct Mass {
    std::vector<Matrix> parts;
    const Job& job;

    explicit Mass(const Job& job) : job(job) {
        int rank = int(job.rank);
        if (job.kind == MATRIX) {
            parts.emplace_back(D, D, job.scale, D, 1);
            parts.emplace_back(D, D, job.scale, 1, D);
        } else if (job.kind == LOW_RANK) {
            parts.emplace_back(D, rank, job.basis, rank, 1);
            parts.emplace_back(rank, D, job.basis, 1, rank);
        }
    }

    template <class X>
    void push(const X* velocity, X* out) const {
        if (job.kind == MATRIX) return parts[0].times(velocity, out);
        root(velocity, out);
        for (int i = 0; i < D; ++i) out[i] = job.scale[i] * out[i];
    }

    template <class X>
    void pull(const X* score, X* out) const {
        if (job.kind == MATRIX) return parts[1].times(score, out);
        X scaled[D];
        for (int i = 0; i < D; ++i) scaled[i] = job.scale[i] * score[i];
        root(scaled, out);
    }

    template <class X>
    void root(const X* v, X* out) const {
        X inner[D];
        parts[1].times(v, inner);
        for (int i = 0; i < job.rank; ++i) inner[i] = job.stretch[i] * inner[i];
        parts[0].times(inner, out);
        for (int i = 0; i < D; ++i) out[i] = v[i] + out[i];
    }
};

// --------------------------------------------------------------------- lanes

// A chain in the middle of a transition, as far as it is not in columns.
struct Lane {
    int64_t chain, step, turn;  // -1: nobody; its transition; how many more until another takes the lane
    int64_t leaf, cursor;       // k; uniforms read from the table so far
    int depth;
    int place, best, first, last, current;  // points: chosen, best of the new half, ends, and the one to come
    uint64_t crossed;  // bit l: a turn between the first leaves of the two neighbours of 2^l leaves
    T peak, weight, uniform;  // of the trajectory: weights are weight * exp(peak); and for its choice between halves
    T energy, level, best_energy, best_level;  // potential, and Hamiltonian, of the chosen and of the best point
    bool accepted, divergent;
    T *points, *leaves, *until;  // x, score, and pulled score; velocity, and the sum before it; sum of velocities
};

struct Sampler {
    // columns
    V x[PITCH] = {}, velocity[PITCH] = {}, kick[PITCH] = {}, score[PITCH] = {}, pulled[PITCH] = {}, rate[PITCH] = {};
    V step_size = {}, start = {}, energy = {}, log_weight = {};
    V key = {}, peak = {}, weight = {}, acceptance = {};  // of the new half, and of the transition
    M good = {}, newer = {};
    Bits a = {}, b = {}, c = {}, d = {};

    Lane lanes[W] = {};
    const Job& job;
    Mass mass;
    bool whole;  // masses that are not diagonal
    int fields, top;
    std::vector<int64_t> queue, done;
    std::vector<T> carried;  // pulled scores of chains that wait
    int64_t waiting = 0, head = 0;
    int active = 0;
    std::unique_ptr<T, decltype(&std::free)> memory{nullptr, &std::free};

    explicit Sampler(const Job& job)
        : job(job), mass(job), whole(job.kind == MATRIX || job.kind == LOW_RANK), fields(whole ? 3 : 2),
          top(int(job.max_depth)), queue(job.chains), done(job.chains, 0), carried(whole ? job.chains * D : 0) {
        size_t points = size_t(POINTS) * fields * PITCH, leaves = size_t(4) * (top + 1) * PITCH;
        size_t each = points + leaves + PITCH;
        memory.reset(static_cast<T*>(std::aligned_alloc(64, (W * each * sizeof(T) + 63) / 64 * 64)));
        if (!memory) throw std::bad_alloc();
        for (int i = 0; i < W; ++i) {
            lanes[i].points = memory.get() + i * each;
            lanes[i].leaves = lanes[i].points + points;
            lanes[i].until = lanes[i].leaves + leaves;
        }
        for (int64_t i = 0; i < job.chains; ++i) queue[i] = i;
        waiting = job.chains;
        for (int i = 0; i < W; ++i) take(i);
    }

    // ------------------------------------------------------------- addresses

    T* point(const Lane& lane, int which) const { return lane.points + which * fields * PITCH; }

    // Where leaf k is kept: its velocity, and behind it the sum of the velocities before it.
    T* leaf(const Lane& lane, int64_t k) const {
        int slot = k & 1 ? top + 1 + __builtin_ctzll(~k) : __builtin_ctzll(k | (int64_t(1) << top));
        return lane.leaves + slot * 2 * PITCH;
    }

    // ---------------------------------------------------------------- chains

    // The next chain that waits, in a lane; nobody if none does.
    void take(int i) {
        Lane& lane = lanes[i];
        if (!waiting) {
            lane.chain = -1;
            lane.place = lane.best = lane.first = lane.last = 0, lane.current = 1, lane.leaf = 1;
            step_size[i] = 0;
            for (int j = 0; j < D; ++j) rate[j][i] = velocity[j][i] = kick[j][i] = 0, x[j][i] = job.x[j];
            return;
        }
        ++active, --waiting;
        int64_t chain = lane.chain = queue[head];
        head = (head + 1) % job.chains;
        lane.step = done[chain];
        lane.turn = TURN;
        lane.place = 0;
        lane.energy = job.energy[chain];
        T* own = point(lane, 0);
        fetch(own, job.x + chain * D);
        fetch(own + PITCH, job.score + chain * D);
        step_size[i] = job.step_size[chain];
        if (whole) {
            // not computed anew when a chain comes back: the last bit could depend on who shares the vector
            T* ready = carried.data() + chain * D;
            if (!lane.step) mass.pull(own + PITCH, ready);
            fetch(own + 2 * PITCH, ready);
        } else {
            const T* scale = job.kind == SEPARATE ? job.scale + chain * D : job.scale;
            for (int j = 0; j < D; ++j) rate[j][i] = step_size[i] * (job.kind == PLAIN ? T(1) : scale[j]);
        }
        begin(i);
    }

    // Put a chain back to where Python finds it.
    void leave(int i) {
        Lane& lane = lanes[i];
        const T* own = point(lane, lane.place);
        std::memcpy(job.x + lane.chain * D, own, D * sizeof(T));
        std::memcpy(job.score + lane.chain * D, own + PITCH, D * sizeof(T));
        if (whole) std::memcpy(carried.data() + lane.chain * D, own + 2 * PITCH, D * sizeof(T));
        job.energy[lane.chain] = lane.energy;
        done[lane.chain] = lane.step;
        --active;
    }

    // ----------------------------------------------------------- transitions

    T uniform_of(int i) {
        Lane& lane = lanes[i];
        if (job.uniforms) {
            int64_t rows = 2 * job.max_depth + (int64_t(1) << job.max_depth) - 1;
            return job.uniforms[(lane.step * rows + lane.cursor++) * job.chains + lane.chain];
        }
        uint64_t s[4] = {a[i], b[i], c[i], d[i]};
        uint64_t bits = next(s[0], s[1], s[2], s[3]);
        a[i] = s[0], b[i] = s[1], c[i] = s[2], d[i] = s[3];
        return uniform<T, Word>(bits);
    }

    // A trajectory of one leaf, with a fresh velocity.
    void begin(int i) {
        Lane& lane = lanes[i];
        T* own = leaf(lane, 0);
        fetch(own, job.normals + (lane.step * job.chains + lane.chain) * D);
        std::memcpy(lane.until, own, PITCH * sizeof(T));
        std::fill(own + PITCH, own + 2 * PITCH, T(0));
        lane.level = start[i] = lane.energy + T(0.5) * squares(own);
        lane.first = lane.last = lane.best = lane.place;
        lane.depth = 0, lane.cursor = 0, lane.peak = 0, lane.weight = 1;
        lane.accepted = lane.divergent = false;
        acceptance[i] = 0;
        if (!job.uniforms) {
            uint64_t seed = job.seeds[lane.chain], at = 4 * uint64_t(lane.step);
            a[i] = mixed(seed, at), b[i] = mixed(seed, at + 1), c[i] = mixed(seed, at + 2), d[i] = mixed(seed, at + 3);
        }
        extend(i);
    }

    // A new half, forwards or backwards in time.
    void extend(int i) {
        Lane& lane = lanes[i];
        int64_t size = int64_t(1) << lane.depth;
        bool backwards = uniform_of(i) < T(0.5);
        lane.uniform = uniform_of(i);
        if (backwards) mirror(lane, size);
        if (backwards || lane.depth == 0) {
            const T *own = point(lane, lane.last), *speed = leaf(lane, size - 1);
            for (int j = 0; j < D; ++j) x[j][i] = own[j], velocity[j][i] = speed[j];
            if (whole)
                for (int j = 0; j < D; ++j) kick[j][i] = T(0.5) * step_size[i] * own[2 * PITCH + j];
            else
                for (int j = 0; j < D; ++j) kick[j][i] = T(0.5) * rate[j][i] * own[PITCH + j];
        }
        key[i] = peak[i] = -INF;
        weight[i] = 0;
        lane.crossed = 0;
        lane.leaf = size;
        vacate(lane);
    }

    // Swap the ends and negate the velocities: what went backwards goes forwards.
    void mirror(Lane& lane, int64_t size) {
        Row *first = (Row*)leaf(lane, 0), *last = (Row*)leaf(lane, size - 1), *until = (Row*)lane.until;
        std::swap(lane.first, lane.last);
        for (int j = 0; j < PITCH / ROW; ++j) {
            Row old = first[j];
            until[j] = -until[j];
            first[j] = -last[j];
            if (size > 1) {
                last[j] = -old;
                last[PITCH / ROW + j] = until[j] - last[j];
            }
        }
    }

    // A point that nothing refers to, for the next leaf.
    static void vacate(Lane& lane) {
        unsigned used = 1u << lane.place | 1u << lane.best | 1u << lane.first | 1u << lane.last;
        lane.current = __builtin_ctz(~used);
    }

    // Whether the stretch from leaf k to the current one turns back on itself.
    bool turns(const Lane& lane, int64_t k, const T* now) const {
        const Row *then = (const Row*)leaf(lane, k), *until = (const Row*)lane.until, *speed = (const Row*)now;
        Row first = {}, last = {};
        for (int j = 0; j < PITCH / ROW; ++j) {
            Row rho = until[j] - then[PITCH / ROW + j];
            first += rho * then[j];
            last += rho * speed[j];
        }
        Row both = sums(first, last, std::make_integer_sequence<int, ROW>());
        return both[0] <= 0 || both[ROW / 2] <= 0;
    }

    // What a lane makes of its new leaf.
    void arrive(int i) {
        Lane& lane = lanes[i];
        if (!good[i]) {
            lane.divergent = energy[i] != INF;
            return end(i);
        }
        int64_t k = lane.leaf, size = int64_t(1) << lane.depth;
        if (newer[i] || k == size) {
            lane.best = lane.current;
            lane.best_energy = energy[i], lane.best_level = start[i] - log_weight[i];
        }
        T* now = leaf(lane, k);
        Row *until = (Row*)lane.until, *speed = (Row*)now;
        for (int j = 0; j < PITCH / ROW; ++j) {
            speed[PITCH / ROW + j] = until[j];
            until[j] += speed[j];
        }
        bool ends = false;
        if (k & 1) {
            int closed = __builtin_ctzll(~k);  // trees that end here; the last of them may be the whole trajectory
            for (int l = 0; l < closed && !ends; ++l) {
                int64_t half = int64_t(1) << l;
                ends = turns(lane, k + 1 - 2 * half, now);
                if (l && !ends) ends = (lane.crossed >> l & 1) || turns(lane, k - half, now);
                if (ends && l < lane.depth) return end(i);
            }
        } else {
            int64_t half = k & -k;
            if (turns(lane, k - half, now)) lane.crossed |= uint64_t(half);
        }
        if (k + 1 == 2 * size) {
            bool higher = peak[i] > lane.peak;
            T ratio = std::exp(higher ? lane.peak - peak[i] : peak[i] - lane.peak);
            T before = lane.weight * (higher ? ratio : T(1)), added = weight[i] * (higher ? T(1) : ratio);
            if (lane.uniform * before < added) {
                lane.place = lane.best, lane.energy = lane.best_energy, lane.level = lane.best_level;
                lane.accepted = true;
            }
            lane.peak = std::max(lane.peak, peak[i]), lane.weight = before + added;
            lane.last = lane.current;
            if (ends || ++lane.depth == top) return end(i);
            return extend(i);
        }
        ++lane.leaf;
        vacate(lane);
    }

    // The end of a transition, and the beginning of the next one in this lane.
    void end(int i) {
        Lane& lane = lanes[i];
        int64_t at = lane.step * job.chains + lane.chain;
        std::memcpy(job.xs + at * D, point(lane, lane.place), D * sizeof(T));
        job.energies[at] = lane.energy;
        job.hamiltonian[at] = lane.level;
        job.acceptance[at] = acceptance[i] / T(lane.leaf);
        job.accepted[at] = lane.accepted;
        job.divergent[at] = lane.divergent;
        job.leapfrogs[at] = lane.leaf;
        ++lane.step;
        if (lane.step == job.steps) {
            leave(i);
            take(i);
        } else if (waiting && !--lane.turn) {
            leave(i);
            queue[(head + waiting++) % job.chains] = lane.chain;
            take(i);
        } else {
            begin(i);
        }
    }

    // ------------------------------------------------------------- all lanes

    void leap() {
        for (int j = 0; j < D; ++j) velocity[j] += kick[j];
        if (whole) {
            mass.push(velocity, pulled);
            for (int j = 0; j < D; ++j) x[j] += step_size * pulled[j];
        } else {
            for (int j = 0; j < D; ++j) x[j] += rate[j] * velocity[j];
        }
        evaluate(x, &energy, score);
        if (whole) {
            mass.pull(score, pulled);
            for (int j = 0; j < D; ++j) kick[j] = T(0.5) * step_size * pulled[j];
        } else {
            for (int j = 0; j < D; ++j) kick[j] = T(0.5) * rate[j] * score[j];
        }
        V kinetic[4] = {};
        for (int j = 0; j < D; j += 4)
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k)
                if (D % 4 == 0 || j + k < D) {
                    V v = velocity[j + k] += kick[j + k];
                    kinetic[k] += v * v;
                }
        log_weight = start - (energy + T(0.5) * ((kinetic[0] + kinetic[1]) + (kinetic[2] + kinetic[3])));
    }

    // Choose with Gumbel noise among the leaves of the new half, and add up weights and acceptance probabilities.
    void weigh() {
        good = (log_weight >= T(-job.max_energy_error)) & (log_weight < INF);
        V u;
        if (job.uniforms) {
            for (int i = 0; i < W; ++i) u[i] = lanes[i].chain < 0 ? T(0.5) : uniform_of(i);
        } else {
            u = uniform<V, Words>(next(a, b, c, d));
        }
        V noisy = log_weight - v_log(-v_log(u));
        newer = noisy > key;
        key = newer ? noisy : key;
        V gap = good ? log_weight - peak : V{};
        M higher = gap > 0;
        V less = higher ? -gap : gap, part = v_exp(less > LEAST ? less : vec(LEAST));
        weight = higher ? weight * part + T(1) : weight + part;
        peak = higher ? log_weight : peak;
        V below = good & (log_weight < 0) ? log_weight : V{};
        V chance = v_exp(below > LEAST ? below : vec(LEAST));
        acceptance += good ? chance : V{};
    }

    // Write the leaves to where their lanes keep them.
    void record() {
        T *xs[W], *scores[W], *pulls[W], *speeds[W];
        for (int i = 0; i < W; ++i) {
            xs[i] = point(lanes[i], lanes[i].current);
            scores[i] = xs[i] + PITCH;
            pulls[i] = scores[i] + PITCH;
            speeds[i] = leaf(lanes[i], lanes[i].leaf);
        }
        deal(x, xs);
        deal(score, scores);
        deal(velocity, speeds);
        if (whole) deal(pulled, pulls);
    }

    void run() {
        while (active) {
            leap();
            weigh();
            record();
            for (int i = 0; i < W; ++i)
                if (lanes[i].chain >= 0) arrive(i);
        }
    }
};

}  // namespace nuts

extern "C" int nuts_transitions(const nuts::Job* job, const T* const* given) {
#ifdef GIVEN
    GIVEN = given;
#endif
    try {
        if (job->chains > 0 && job->steps > 0) std::unique_ptr<nuts::Sampler>(new nuts::Sampler(*job))->run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
