#ifndef TBN_ATTENTION
#define TBN_ATTENTION

namespace tbn {

// Products on tensor cores, 16 rows by 16 columns at a time: of 16-bit types as they are, ...
template <typename T>
struct Products {
  static constexpr int kDepth = 16;  // terms of a product
  static constexpr int kKeyPadding = 8, kValuePadding = 8;  // elements, so that no bank is hit twice
  static constexpr bool kApart = false;  // whether sums so far stay out of the tensor cores
  using Pair = unsigned;
  struct Left {
    unsigned pairs[4];
  };
  struct Right {
    unsigned pairs[2][2];
  };

  static __device__ __forceinline__ Pair pair(T low, T high) {
    return __byte_perm(raw(low), raw(high), 0x5410);
  }

  static __device__ __forceinline__ Pair pair_of(float low, float high) {
    return Element<T>::pack(low, high);
  }

  // `fetch(half, column)` gives the pair at this lane's column of its row in a half of 8 rows.
  template <typename Fetch>
  static __device__ __forceinline__ Left rows(const Fetch& fetch) {
    return {{fetch(0, 0), fetch(1, 0), fetch(0, 8), fetch(1, 8)}};
  }

  // What a product left, 8 columns at a time, as the rows of the next.
  static __device__ __forceinline__ Left weights(const float (*tiles)[4]) {
    return {{pair_of(tiles[0][0], tiles[0][1]), pair_of(tiles[0][2], tiles[0][3]),
             pair_of(tiles[1][0], tiles[1][1]), pair_of(tiles[1][2], tiles[1][3])}};
  }

  // 16 columns that lie one after the other, each with its terms side by side.
  static __device__ __forceinline__ Right keys(const T* shared, int pitch) {
    const int lane = threadIdx.x % 32;
    Right right;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(right.pairs[0][0]), "=r"(right.pairs[0][1]), "=r"(right.pairs[1][0]),
                   "=r"(right.pairs[1][1])
                 : "r"(shared_address(shared + (lane / 16 * 8 + lane % 8) * pitch +
                                      lane / 8 % 2 * 8)));
    return right;
  }

  // 16 columns side by side, their terms one after the other.
  static __device__ __forceinline__ Right values(const T* shared, int pitch) {
    const int lane = threadIdx.x % 32;
    Right right;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(right.pairs[0][0]), "=r"(right.pairs[0][1]), "=r"(right.pairs[1][0]),
                   "=r"(right.pairs[1][1])
                 : "r"(shared_address(shared + lane % 16 * pitch + lane / 16 * 8)));
    return right;
  }

  static __device__ __forceinline__ void add(float (*sums)[4], const Left& left,
                                             const Right& right) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) product(sums[tile], left.pairs, right.pairs[tile], T());
  }

 private:
  static __device__ __forceinline__ unsigned raw(T value) {
    return *reinterpret_cast<const unsigned short*>(&value);
  }

  static __device__ __forceinline__ void product(float (&d)[4], const unsigned (&a)[4],
                                                 const unsigned (&b)[2], __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }

  static __device__ __forceinline__ void product(float (&d)[4], const unsigned (&a)[4],
                                                 const unsigned (&b)[2], __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

// ... and of float32 in three products of TF32: a number is an upper part of 11 bits and the rest,
// and the product of two rests is below float32's rounding. The order of a product's terms is free:
// a lane takes neighbours where the instruction's numbering has terms t and t + 4. Tensor cores cut
// off what does not fit into a sum, so they add up a few products only.
template <>
struct Products<float> {
  static constexpr int kDepth = 8;
  static constexpr int kKeyPadding = 8, kValuePadding = 4;
  static constexpr bool kApart = true;
  using Pair = float2;
  struct Left {
    unsigned upper[4], rest[4];
  };
  struct Right {
    unsigned upper[2][2], rest[2][2];
  };

  static __device__ __forceinline__ Pair pair(float low, float high) {
    return make_float2(low, high);
  }

  static __device__ __forceinline__ Pair pair_of(float low, float high) { return pair(low, high); }

  template <typename Fetch>
  static __device__ __forceinline__ Left rows(const Fetch& fetch) {
    const Pair first = fetch(0, 0), second = fetch(1, 0);
    return split(first.x, second.x, first.y, second.y);
  }

  static __device__ __forceinline__ Left weights(const float (*tiles)[4]) {
    return split(tiles[0][0], tiles[0][2], tiles[0][1], tiles[0][3]);
  }

  static __device__ __forceinline__ Right keys(const float* shared, int pitch) {
    const int lane = threadIdx.x % 32;
    const float* source = shared + lane / 4 * pitch + lane % 4 * 2;
    Right right;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const float2 terms = *reinterpret_cast<const float2*>(source + tile * 8 * pitch);
      split(right.upper[tile][0], right.rest[tile][0], terms.x);
      split(right.upper[tile][1], right.rest[tile][1], terms.y);
    }
    return right;
  }

  static __device__ __forceinline__ Right values(const float* shared, int pitch) {
    const int lane = threadIdx.x % 32;
    const float* source = shared + lane % 4 * 2 * pitch + lane / 4;
    Right right;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int term = 0; term < 2; ++term)
        split(right.upper[tile][term], right.rest[tile][term], source[term * pitch + tile * 8]);
    return right;
  }

  static __device__ __forceinline__ void add(float (*sums)[4], const Left& left,
                                             const Right& right) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      product(sums[tile], left.rest, right.upper[tile]);
      product(sums[tile], left.upper, right.rest[tile]);
      product(sums[tile], left.upper, right.upper[tile]);
    }
  }

 private:
  static __device__ __forceinline__ void split(unsigned& upper, unsigned& rest, float value) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(upper) : "f"(value));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rest) : "f"(value - __uint_as_float(upper)));
  }

  static __device__ __forceinline__ Left split(float a, float b, float c, float d) {
    Left left;
    split(left.upper[0], left.rest[0], a);
    split(left.upper[1], left.rest[1], b);
    split(left.upper[2], left.rest[2], c);
    split(left.upper[3], left.rest[3], d);
    return left;
  }

  static __device__ __forceinline__ void product(float (&d)[4], const unsigned (&a)[4],
                                                 const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

// output = softmax(scale * query . key^T + mask) . value for one head and a tile of its queries.
// Keys and values pass through two stages of shared memory; a row's greatest score so far, and the
// sums that are relative to it, stay in registers (online softmax, Milakov and Gimelshein 2018; the
// tiling is FlashAttention's, Dao et al. 2022). `kShares` warps divide the keys of a stage; what
// they found meets in a fixed order.
template <typename T, int kHeadSize, bool kAligned, bool kMasked, int kRowWarps, int kRowTiles,
          int kShares, int kKeys>
struct Attention {
  using P = Products<T>;
  using Pair = typename P::Pair;
  using Left = typename P::Left;
  using Right = typename P::Right;
  static constexpr int kHead = (kHeadSize + 15) / 16 * 16;
  static constexpr int kThreads = 32 * kRowWarps * kShares;
  static constexpr int kStageKeys = kKeys * kShares;
  static constexpr int kKeyPitch = kHead + P::kKeyPadding;
  static constexpr int kValuePitch = kHead + P::kValuePadding;
  static constexpr int kStage = kStageKeys * (kKeyPitch + kValuePitch);  // elements
  static constexpr int kFloats = kRowTiles * (kHead / 2 + 4);            // of a lane's State
  static constexpr int kStageBytes = 2 * kStage * sizeof(T);
  static constexpr int kMergeBytes = kShares > 1 ? kThreads * kFloats * 4 : 0;
  static constexpr int kSharedBytes = kStageBytes > kMergeBytes ? kStageBytes : kMergeBytes;
  static constexpr int kSteps = kHead / P::kDepth;
  static constexpr bool kHeld = kHead * sizeof(T) <= 256;  // whether queries stay in registers
  static constexpr float kLog2E = 1.4426950408889634f;

  // Strides in elements; neighbours within a row are side by side, but for the mask.
  const T* query;
  const T* key;
  const T* value;
  const T* mask;
  T* output;
  long long query_stride, key_stride, value_stride, mask_stride, mask_column_stride, output_stride;
  int queries, keys;
  float scale;

  // Of rows lane / 4 and lane / 4 + 8 of each tile: the greatest score, the sum of weights, and
  // their sums with the values.
  struct State {
    float greatest[kRowTiles][2], total[kRowTiles][2], sums[kRowTiles][kHead / 8][4];
  };

  __device__ __forceinline__ void run(unsigned char* shared, int tile) {
    const int warp = threadIdx.x / 32, share = warp % kShares;
    const int first_row = (tile * kRowWarps + warp / kShares) * kRowTiles * 16;
    T* stages = reinterpret_cast<T*>(shared);
    const int count = (keys + kStageKeys - 1) / kStageKeys;
    if (count > 0) copy(stages, 0);
    asm volatile("cp.async.commit_group;" ::: "memory");
    Left held[kRowTiles][kHeld ? kSteps : 1];
    if constexpr (kHeld) {
#pragma unroll
      for (int rows = 0; rows < kRowTiles; ++rows)
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          held[rows][step] = fetch(first_row + rows * 16, step);
    }
    State state;
    clear(state);
    for (int index = 0; index < count; ++index) {
      if (index + 1 < count) copy(stages + (index + 1) % 2 * kStage, (index + 1) * kStageKeys);
      asm volatile("cp.async.commit_group;" ::: "memory");
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      __syncthreads();
      const int first_key = index * kStageKeys + share * kKeys;
      const T* key_tile = stages + index % 2 * kStage + share * kKeys * kKeyPitch;
      const T* value_tile = stages + index % 2 * kStage + kStageKeys * kKeyPitch +
                            share * kKeys * kValuePitch;
      if (first_row < queries) {
        if (first_key + kKeys <= keys)
          attend<true>(state, held, key_tile, value_tile, first_row, first_key);
        else if (first_key < keys)
          attend<false>(state, held, key_tile, value_tile, first_row, first_key);
      }
      __syncthreads();
    }
    add_up(state);
    if constexpr (kShares > 1) {
      merge(state, reinterpret_cast<float*>(shared) + threadIdx.x / 32 * kFloats * 32);
      if (share > 0) return;
    }
    store(state, first_row);
  }

 private:
  static __device__ __forceinline__ float exp2(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
  }

  static __device__ __forceinline__ float lowest() { return __int_as_float(0xFF800000); }

  // What scores are relative to: their greatest, or anything where there is no score yet.
  static __device__ __forceinline__ float base_of(float greatest) {
    return greatest == lowest() ? 0.f : greatest;
  }

  __device__ __forceinline__ float factor() const { return kMasked ? kLog2E : scale * kLog2E; }

  // A product is exact within its fused sum, but would overflow for the lowest number as a mask,
  // and rounds the base in its own way for each of them.
  __device__ __forceinline__ float weight(float score, float base) const {
    if constexpr (kMasked || sizeof(T) == 4) return exp2((score - base) * factor());
    return exp2(fmaf(score, factor(), -base * factor()));
  }

  static __device__ __forceinline__ void clear(State& state) {
#pragma unroll
    for (int rows = 0; rows < kRowTiles; ++rows) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        state.greatest[rows][half] = lowest(), state.total[rows][half] = 0.f;
#pragma unroll
      for (int i = 0; i < kHead / 2; ++i) state.sums[rows][i / 4][i % 4] = 0.f;
    }
  }

  __device__ __forceinline__ void copy(T* stage, int first) const {
    copy(stage, key + first * key_stride, key_stride, kKeyPitch, keys - first);
    copy(stage + kStageKeys * kKeyPitch, value + first * value_stride, value_stride, kValuePitch,
         keys - first);
  }

  static __device__ __forceinline__ void copy(T* target, const T* source, long long stride,
                                              int pitch, int count) {
    constexpr int kRun = kAligned ? 16 / sizeof(T) : 1;
    constexpr int kRuns = kHead / kRun;
#pragma unroll 4
    for (int at = threadIdx.x; at < kStageKeys * kRuns; at += kThreads) {
      const int row = at / kRuns, column = at % kRuns * kRun;
      const bool inside = row < count && column < kHeadSize;
      const T* from = source + (inside ? row * stride + column : 0);
      T* to = target + row * pitch + column;
      if constexpr (kAligned) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                     "l"(from), "r"(inside ? 16 : 0)
                     : "memory");
      } else {
        *to = inside ? *from : T(0.f);
      }
    }
  }

  __device__ __forceinline__ Left fetch(int first_row, int step) const {
    const int lane = threadIdx.x % 32;
    return P::rows([&](int half, int offset) {
      const int row = first_row + half * 8 + lane / 4;
      const int column = step * P::kDepth + lane % 4 * 2 + offset;
      const T* source = query + row * query_stride + column;
      if constexpr (kAligned) {
        return row < queries && column < kHeadSize ? *reinterpret_cast<const Pair*>(source)
                                                   : P::pair_of(0.f, 0.f);
      } else {
        const bool inside = row < queries;
        return P::pair(inside && column < kHeadSize ? source[0] : T(0.f),
                       inside && column + 1 < kHeadSize ? source[1] : T(0.f));
      }
    });
  }

  template <bool kWhole, int kHeldSteps>
  __device__ __forceinline__ void attend(State& state, const Left (&held)[kRowTiles][kHeldSteps],
                                         const T* key_tile, const T* value_tile, int first_row,
                                         int first_key) const {
    const int left = keys - first_key;
    float scores[kRowTiles][kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Left rows_of_step[kRowTiles];
#pragma unroll
      for (int rows = 0; rows < kRowTiles; ++rows) {
        if constexpr (kHeld)
          rows_of_step[rows] = held[rows][step];
        else
          rows_of_step[rows] = fetch(first_row + rows * 16, step);
      }
#pragma unroll
      for (int block = 0; block < kKeys / 16; ++block) {
        if (!kWhole && block * 16 >= left) break;
        const Right right =
            P::keys(key_tile + block * 16 * kKeyPitch + step * P::kDepth, kKeyPitch);
#pragma unroll
        for (int rows = 0; rows < kRowTiles; ++rows)
          P::add(&scores[rows][2 * block], rows_of_step[rows], right);
      }
    }
    float shrink[kRowTiles][2];
    Left weights[kRowTiles][kKeys / P::kDepth];
#pragma unroll
    for (int rows = 0; rows < kRowTiles; ++rows) {
      finish_scores<kWhole>(scores[rows], first_row + rows * 16, first_key);
      weigh(state, rows, scores[rows], shrink[rows]);
#pragma unroll
      for (int step = 0; step < kKeys / P::kDepth; ++step)
        weights[rows][step] = P::weights(&scores[rows][step * P::kDepth / 8]);
    }
#pragma unroll
    for (int block = 0; block < kHead / 16; ++block) {
      float sums[kRowTiles][2][4];
#pragma unroll
      for (int i = 0; i < 8 * kRowTiles; ++i) {
        const float sum = state.sums[i / 8][2 * block + i % 8 / 4][i % 4];
        sums[i / 8][i % 8 / 4][i % 4] = P::kApart ? 0.f : sum * shrink[i / 8][i % 4 / 2];
      }
#pragma unroll
      for (int step = 0; step < kKeys / P::kDepth; ++step) {
        if (!kWhole && step * P::kDepth >= left) break;
        const Right right =
            P::values(value_tile + step * P::kDepth * kValuePitch + block * 16, kValuePitch);
#pragma unroll
        for (int rows = 0; rows < kRowTiles; ++rows) P::add(sums[rows], weights[rows][step], right);
      }
#pragma unroll
      for (int i = 0; i < 8 * kRowTiles; ++i) {
        const float added = sums[i / 8][i % 8 / 4][i % 4];
        float& sum = state.sums[i / 8][2 * block + i % 8 / 4][i % 4];
        sum = P::kApart ? fmaf(sum, shrink[i / 8][i % 4 / 2], added) : added;
      }
    }
  }

  // Adds the mask, and takes out the keys that there are not.
  template <bool kWhole>
  __device__ __forceinline__ void finish_scores(float (&scores)[kKeys / 8][4], int first_row,
                                                int first_key) const {
    if constexpr (kWhole && !kMasked) return;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int row = first_row + i % 4 / 2 * 8 + lane / 4;
      const int column = first_key + i / 4 * 8 + lane % 4 * 2 + i % 2;
      float& score = scores[i / 4][i % 4];
      if (column >= keys)
        score = lowest();
      else if (kMasked && row < queries)
        score = fmaf(score, scale,
                     float(mask[row * mask_stride + column * mask_column_stride]));
    }
  }

  // Scores to weights, relative to the greatest so far; sums have to shrink as much as the total.
  __device__ __forceinline__ void weigh(State& state, int rows, float (&scores)[kKeys / 8][4],
                                        float (&shrink)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float greatest = state.greatest[rows][half];
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i)
        greatest = fmaxf(greatest, scores[i / 2][half * 2 + i % 2]);
      greatest = fmaxf(greatest, __shfl_xor_sync(0xFFFFFFFFu, greatest, 1));
      greatest = fmaxf(greatest, __shfl_xor_sync(0xFFFFFFFFu, greatest, 2));
      const float base = base_of(greatest);
      shrink[half] = weight(state.greatest[rows][half], base);
      state.greatest[rows][half] = greatest;
      float total = state.total[rows][half] * shrink[half];
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) {
        float& score = scores[i / 2][half * 2 + i % 2];
        score = weight(score, base);
        total += score;
      }
      state.total[rows][half] = total;
    }
  }

  static __device__ __forceinline__ void add_up(State& state) {
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      float& total = state.total[i / 2][i % 2];
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
    }
  }

  // The first share's warp adds what the others found; `place` is this warp's in shared memory.
  __device__ __forceinline__ void merge(State& state, float* place) const {
    static_assert(sizeof(State) == 4 * kFloats, "a state is floats alone");
    const int lane = threadIdx.x % 32;
    float* mine = reinterpret_cast<float*>(&state);
#pragma unroll
    for (int i = 0; i < kFloats; ++i) place[i * 32 + lane] = mine[i];
    __syncthreads();
    if (threadIdx.x / 32 % kShares > 0) return;
    for (int other = 1; other < kShares; ++other) {
      State theirs;
      float* fields = reinterpret_cast<float*>(&theirs);
#pragma unroll
      for (int i = 0; i < kFloats; ++i) fields[i] = place[(other * kFloats + i) * 32 + lane];
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
        const int rows = i / 2, half = i % 2;
        const float greatest = fmaxf(state.greatest[rows][half], theirs.greatest[rows][half]);
        const float base = base_of(greatest);
        const float own = weight(state.greatest[rows][half], base);
        const float others = weight(theirs.greatest[rows][half], base);
        state.greatest[rows][half] = greatest;
        state.total[rows][half] =
            state.total[rows][half] * own + theirs.total[rows][half] * others;
#pragma unroll
        for (int at = 0; at < kHead / 4; ++at) {
          float& sum = state.sums[rows][at / 2][half * 2 + at % 2];
          sum = sum * own + theirs.sums[rows][at / 2][half * 2 + at % 2] * others;
        }
      }
    }
  }

  __device__ __forceinline__ void store(const State& state, int first_row) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int rows = i / 2, half = i % 2;
      const int row = first_row + rows * 16 + half * 8 + lane / 4;
      if (row >= queries) continue;
      const float share = 1.f / state.total[rows][half];
      T* target = output + row * output_stride;
#pragma unroll
      for (int tile = 0; tile < kHead / 8; ++tile) {
        const int column = tile * 8 + lane % 4 * 2;
        const float low = state.sums[rows][tile][half * 2] * share;
        const float high = state.sums[rows][tile][half * 2 + 1] * share;
        if constexpr (kAligned) {
          if (column < kHeadSize)
            *reinterpret_cast<Pair*>(target + column) = P::pair_of(low, high);
        } else {
          if (column < kHeadSize) target[column] = T(low);
          if (column + 1 < kHeadSize) target[column + 1] = T(high);
        }
      }
    }
  }
};

}  // namespace tbn
#endif
