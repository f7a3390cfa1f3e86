#ifndef TBN_GEMV
#define TBN_GEMV

namespace tbn {

__device__ __forceinline__ void load_fragments(unsigned (&b)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address));
}

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                    __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                    __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A few rows of x: each warp multiplies 16 distinct rows with its share of the inputs; partial sums
// meet in shared memory, and across the `kCluster` blocks of a cluster, in a fixed order.
// blockIdx.y counts runs of `kLines` rows of x.
template <typename T_, typename Activation_, int kRowWarps_, int kInputWarps_, int kCluster_,
          int kLines_>
struct Gemv {
  using T = T_;
  using Activation = Activation_;
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kInputWarps = kInputWarps_;
  static constexpr int kCluster = kCluster_;
  static constexpr int kLines = kLines_;  // rows of x per block, at most 16
  static constexpr int kTiles = (kLines + 7) / 8;
  static constexpr int kChunk = kLines > 4 ? 4 : 8;  // blocks of 128 inputs fetched at once
  static constexpr int kThreads = 32 * kRowWarps * kInputWarps;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kBatch = 8 * kTiles;
  static constexpr int kPitch = kBatch + 1;
  static constexpr int kPartialBytes = (kInputWarps * kRows * kPitch * 4 + 15) / 16 * 16;
  static constexpr int kMine = (kRows + kCluster - 1) / kCluster;  // rows that a block finishes
  static constexpr int kFinishedBytes = (kMine * kBatch * 4 + 15) / 16 * 16;
  static constexpr int kLineBytes = kChunk * 256 + 16;
  static constexpr int kStageBytes = kLines * kLineBytes;
  static constexpr int kSharedBytes = kPartialBytes + kFinishedBytes + 2 * kInputWarps * kStageBytes;

  int rows, copies, batch, inputs;
  const unsigned* words;
  const float* scale;
  const float* bias;
  const T* x;
  T* y;

  __device__ __forceinline__ void run(unsigned char* shared) {
    x += static_cast<size_t>(blockIdx.y) * kLines * inputs;
    y += static_cast<size_t>(blockIdx.y) * kLines * copies * rows;
    batch = min(batch - static_cast<int>(blockIdx.y) * kLines, kLines);
    float* partial = reinterpret_cast<float*>(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row_warp = warp % kRowWarps, input_warp = warp / kRowWarps;
    const int group = blockIdx.x / kCluster, rank = blockIdx.x % kCluster;
    const int blocks = (inputs + 127) / 128;
    const int each = (blocks + kCluster * kInputWarps - 1) / (kCluster * kInputWarps);
    const int begin = (rank * kInputWarps + input_warp) * each, end = min(begin + each, blocks);
    const int row = group * kRows + row_warp * 16 + lane / 4;
    const unsigned* low = words + static_cast<size_t>(min(row, rows - 1)) * 4 + lane % 4;
    const unsigned* high = words + static_cast<size_t>(min(row + 8, rows - 1)) * 4 + lane % 4;
    const unsigned staged = shared_address(shared) + kPartialBytes + kFinishedBytes +
                            2 * input_warp * kStageBytes;

    unsigned ahead[kChunk][2];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) fetch(ahead[i], low, high, begin + i, end);
    stage(staged, begin, min(begin + kChunk, end), row_warp, lane);
    const int output = first_output(group, rank);
    const float first_scale = output < 0 ? 0.f : __ldg(scale + output);
    const float first_bias = output < 0 ? 0.f : __ldg(bias + output);

    // Two sums in turn, as each product waits for the one before it.
    float sums[2][kTiles][4] = {};
    // Lanes of absent rows of x read the last one; their columns are never stored.
    unsigned fragments[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      fragments[tile] = staged + min(tile * 8 + lane % 8, batch - 1) * kLineBytes + lane / 8 * 16;

    unsigned buffer = 0;
    for (int chunk = begin; chunk < end; chunk += kChunk) {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      meet_share(input_warp);
      const int next = chunk + kChunk;
      if (next < end)
        stage(staged + (kStageBytes - buffer), next, min(next + kChunk, end), row_warp, lane);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const unsigned word[2] = {ahead[i][0], ahead[i][1]};
        fetch(ahead[i], low, high, next + i, end);
        if (chunk + i < end) accumulate(sums, word, fragments, buffer + i * 256);
      }
      buffer = kStageBytes - buffer;
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = (input_warp * kRows) + row_warp * 16 + lane / 4 + i / 2 * 8;
        partial[at * kPitch + tile * 8 + lane % 4 * 2 + i % 2] = sums[0][tile][i] + sums[1][tile][i];
      }
    reduce(shared_address(partial), group, rank, first_scale, first_bias);
  }

 private:
  __device__ __forceinline__ void fetch(unsigned (&word)[2], const unsigned* low,
                                        const unsigned* high, int block, int end) {
    if (block >= end) return;
    const size_t offset = static_cast<size_t>(block) * rows * 4;
    word[0] = load_word(low + offset);
    word[1] = load_word(high + offset);
  }

  // The warps of one share of the inputs wait for each other.
  __device__ __forceinline__ void meet_share(int input_warp) {
    if constexpr (kRowWarps == 1) {
      __syncwarp();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(input_warp + 1), "n"(32 * kRowWarps) : "memory");
    }
  }

  // Brings blocks of x, the work divided among the warps that read them; zeros beyond its end.
  __device__ __forceinline__ void stage(unsigned target, int begin, int end, int row_warp,
                                        int lane) {
    for (int line = 0; line < batch; ++line)
      for (int at = row_warp * 32 + lane; at < (end - begin) * 16; at += 32 * kRowWarps) {
        const int input = begin * 128 + at * 8;
        const T* source = x + static_cast<size_t>(line) * inputs + min(input, inputs - 8);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                         target + line * kLineBytes + at * 16),
                     "l"(source), "r"(input < inputs ? 16 : 0)
                     : "memory");
      }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  __device__ __forceinline__ void accumulate(float (&sums)[2][kTiles][4], const unsigned (&word)[2],
                                             const unsigned (&fragments)[kTiles], int offset) {
#pragma unroll
    for (int four = 0; four < 4; ++four) {
      unsigned b[kTiles][4];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        load_fragments(b[tile], fragments[tile] + offset + four * 64);
#pragma unroll
      for (int two = 0; two < 2; ++two) {
        const int pair = four * 4 + two * 2;
        const unsigned a[4] = {signs<T>(word[0], pair), signs<T>(word[1], pair),
                               signs<T>(word[0], pair + 1), signs<T>(word[1], pair + 1)};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          mma(sums[two][tile], a, b[tile][two * 2], b[tile][two * 2 + 1], T());
      }
    }
  }

  __device__ __forceinline__ void meet() {
    if constexpr (kCluster == 1) {
      __syncthreads();
    } else {
      asm volatile(
          "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" :::
              "memory");
    }
  }

  static __device__ __forceinline__ float read(unsigned address, int rank) {
    float value;
    if constexpr (kCluster == 1) {
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
    } else {
      asm volatile(
          "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %1, %2;\n"
          "ld.shared::cluster.f32 %0, [remote];\n}"
          : "=f"(value)
          : "r"(address), "r"(rank));
    }
    return value;
  }

  // The output of this thread's first turn in `reduce`, or -1.
  __device__ __forceinline__ int first_output(int group, int rank) {
    const int local = rank * kMine + threadIdx.x % kMine, row = group * kRows + local;
    const int copy = threadIdx.x / kMine % copies;
    return local < kRows && row < rows ? copy * rows + row : -1;
  }

  __device__ __forceinline__ void reduce(unsigned partial, int group, int rank, float first_scale,
                                         float first_bias) {
    meet();
    // Each block finishes its own rows: first the sums, kept in shared memory of their own.
    const unsigned finished = partial + kPartialBytes;
    for (int at = threadIdx.x; at < kMine * batch; at += kThreads) {
      const int local = min(rank * kMine + at % kMine, kRows - 1), line = at / kMine;
      float values[kCluster * kInputWarps];
#pragma unroll
      for (int i = 0; i < kCluster * kInputWarps; ++i)
        values[i] = read(partial + ((i % kInputWarps * kRows + local) * kPitch + line) * 4,
                         i / kInputWarps);
      float sum = values[0];
#pragma unroll
      for (int i = 1; i < kCluster * kInputWarps; ++i) sum += values[i];
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(finished + at * 4), "f"(sum) : "memory");
    }
    meet();
    for (int at = threadIdx.x; at < kMine * copies * batch; at += kThreads) {
      const int local = rank * kMine + at % kMine, row = group * kRows + local;
      const int copy = at / kMine % copies, line = at / kMine / copies;
      if (local >= kRows || row >= rows) continue;
      float sum;
      asm volatile("ld.shared.f32 %0, [%1];"
                   : "=f"(sum)
                   : "r"(finished + (line * kMine + at % kMine) * 4)
                   : "memory");
      const int output = copy * rows + row;
      const bool first = at == threadIdx.x;
      const float factor = first ? first_scale : __ldg(scale + output);
      const float shift = first ? first_bias : __ldg(bias + output);
      y[static_cast<size_t>(line) * copies * rows + output] =
          T(Activation::apply(fmaf(sum, factor, shift)));
    }
  }
};

}  // namespace tbn
#endif
