#ifndef TBN_GEMM_HOPPER
#define TBN_GEMM_HOPPER

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace tbn {

__device__ __forceinline__ void barrier_init(unsigned barrier, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned phase) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

__device__ __forceinline__ void load_box(unsigned target, const void* map, int x, int y,
                                         unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void store_box(const void* map, int x, int y, int z, unsigned source) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
      "r"(x), "r"(y), "r"(z), "r"(source)
      : "memory");
}

__device__ __forceinline__ void store_transposed(unsigned address, unsigned a, unsigned b,
                                                 unsigned c, unsigned d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// A shared-memory box of rows of 128 bytes, 128-byte swizzle, as operand B of wgmma.
__device__ __forceinline__ unsigned long long box_descriptor(unsigned address) {
  return (static_cast<unsigned long long>(1) << 62) | (static_cast<unsigned long long>(64) << 32) |
         (static_cast<unsigned long long>(1) << 16) | ((address & 0x3FFFFu) >> 4);
}

// Work of one block: `kGroups` consumer warpgroups and one producer warp.
//
// Tensor cores compute u[row, m] = sum_k sign[row, k] x[m, k] with the signs unpacked in registers,
// so that only x passes through shared memory, and each box of it once for all warpgroups. Sums
// are copied to y by the bulk copy engine while the next tile's boxes arrive.
template <typename T_, typename Activation_, int kGroups_, int kSpans_, int kColumns_, int kStages_,
          int kStoreRows_>
struct Gemm {
  using T = T_;
  using Activation = Activation_;
  static constexpr int kGroups = kGroups_;    // consumer warpgroups
  static constexpr int kSpans = kSpans_;      // runs of 64 distinct rows per warpgroup
  static constexpr int kColumns = kColumns_;  // rows of x per tile
  static constexpr int kStages = kStages_;
  static constexpr int kStoreRows = kStoreRows_;  // rows of y per store
  static constexpr int kThreads = 128 * kGroups + 128;
  static constexpr int kBoxBytes = kColumns * 128;
  static constexpr int kStoreBytes = kStoreRows * 128;
  static constexpr int kTileRows = 64 * kSpans * kGroups;
  static constexpr int kSlices = 2;  // k16 slices per commit
  static constexpr int kSharedBytes =
      1024 + kStages * kBoxBytes + 2 * kGroups * kStoreBytes + 16 * kStages;

  int rows, copies, batch, inputs;
  const unsigned* words;
  const float* scale;
  const float* bias;

  __device__ __forceinline__ void run(const void* x_map, const void* y_map, unsigned char* shared) {
    unsigned base = (shared_address(shared) + 1023u) & ~1023u;
    boxes_ = base;
    staging_ = base + kStages * kBoxBytes;
    barriers_ = staging_ + 2 * kGroups * kStoreBytes;
    steps_ = (inputs + 127) / 128 * 2;
    row_tiles_ = (rows + kTileRows - 1) / kTileRows;
    tiles_ = row_tiles_ * ((batch + kColumns - 1) / kColumns);
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(full(stage), 1);
        barrier_init(empty(stage), kGroups);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x >= 128 * kGroups) {
      if constexpr (kGroups == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
      if constexpr (kGroups == 3) asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
      if (threadIdx.x == 128 * kGroups) produce(x_map);
    } else {
      if constexpr (kGroups == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
      if constexpr (kGroups == 3) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
      consume(y_map);
    }
  }

  unsigned boxes_, staging_, barriers_;  // set by run()
  int steps_, row_tiles_, tiles_;

  __device__ __forceinline__ unsigned full(int stage) { return barriers_ + 16 * stage; }
  __device__ __forceinline__ unsigned empty(int stage) { return barriers_ + 16 * stage + 8; }

  __device__ __forceinline__ void produce(const void* x_map) {
    int stage = 0;
    unsigned phase = 1;
    for (int tile = blockIdx.x; tile < tiles_; tile += gridDim.x) {
      const int column = tile / row_tiles_ * kColumns;
      for (int step = 0; step < steps_; ++step) {
        barrier_wait(empty(stage), phase);
        barrier_expect(full(stage), kBoxBytes);
        load_box(boxes_ + stage * kBoxBytes, x_map, step * 64, column, full(stage));
        if (++stage == kStages) stage = 0, phase ^= 1;
      }
    }
  }

  __device__ __forceinline__ void consume(const void* y_map) {
    const int group = threadIdx.x / 128;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    int position = 0, buffer = 0;
    for (int tile = blockIdx.x; tile < tiles_; tile += gridDim.x) {
      const int row = tile % row_tiles_ * kTileRows + group * 64 * kSpans;
      const int column = tile / row_tiles_ * kColumns;
      float sums[kSpans][kColumns / 2];
      multiply(sums, row + warp * 16 + lane / 4, lane % 4, position);
      position += steps_;
      store(sums, y_map, row, column, group, warp, lane, buffer);
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }

  __device__ __forceinline__ void fetch(unsigned (&words_of)[kSpans][2], int row, int quad,
                                        int block) {
#pragma unroll
    for (int span = 0; span < kSpans; ++span)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = min(row + span * 64 + half * 8, rows - 1);
        words_of[span][half] =
            load_word(words + (static_cast<size_t>(block) * rows + at) * 4 + quad);
      }
  }

  __device__ __forceinline__ void multiply(float (&sums)[kSpans][kColumns / 2], int row, int quad,
                                           int position) {
    int stage = position % kStages;
    unsigned phase = position / kStages % 2;
    int waiting = -1;
    const int blocks = steps_ / 2;
    unsigned next[kSpans][2], current[kSpans][2];
    unsigned a[2][kSpans][kSlices][4];
    fetch(next, row, quad, 0);
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int span = 0; span < kSpans; ++span)
        current[span][0] = next[span][0], current[span][1] = next[span][1];
      if (block + 1 < blocks) fetch(next, row, quad, block + 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned box = boxes_ + stage * kBoxBytes;
#pragma unroll
        for (int part = 0; part < 4 / kSlices; ++part) {
          const int turn = (half * (4 / kSlices) + part) % 2;
#pragma unroll
          for (int span = 0; span < kSpans; ++span)
#pragma unroll
            for (int slice = 0; slice < kSlices; ++slice) {
              const int pair = 2 * (half * 4 + part * kSlices + slice);
              a[turn][span][slice][0] = signs<T>(current[span][0], pair);
              a[turn][span][slice][1] = signs<T>(current[span][1], pair);
              a[turn][span][slice][2] = signs<T>(current[span][0], pair + 1);
              a[turn][span][slice][3] = signs<T>(current[span][1], pair + 1);
              // Settled before the fence: later definitions would serialise the products.
#pragma unroll
              for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[turn][span][slice][i])::"memory");
            }
          if (part == 0) barrier_wait(full(stage), phase);
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
          for (int slice = 0; slice < kSlices; ++slice)
#pragma unroll
            for (int span = 0; span < kSpans; ++span)
              Wgmma<T, kColumns>::multiply(sums[span], a[turn][span][slice],
                                           box_descriptor(box) + 2 * (part * kSlices + slice),
                                           block > 0 || half > 0 || part > 0 || slice > 0);
          asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" :::
                           "memory");
          if (part == 0 && waiting >= 0) release(waiting);
        }
        waiting = stage;
        if (++stage == kStages) stage = 0, phase ^= 1;
      }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int span = 0; span < kSpans; ++span)
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) asm volatile("" : "+f"(sums[span][i])::"memory");
    release(waiting);
  }

  __device__ __forceinline__ void release(int stage) {
    if (threadIdx.x % 128 == 0) barrier_arrive(empty(stage));
  }

  __device__ __forceinline__ void store(float (&sums)[kSpans][kColumns / 2], const void* y_map,
                                        int row, int column, int group, int warp, int lane,
                                        int& buffer) {
    const int line = lane % 8 + lane / 16 * 8, chunk = 2 * warp + lane / 8 % 2;
    for (int copy = 0; copy < copies; ++copy) {
#pragma unroll
      for (int span = 0; span < kSpans; ++span) {
        const int first = row + span * 64;
        if (first >= rows) break;
        const int low = copy * rows + min(first + warp * 16 + lane / 4, rows - 1);
        const int high = copy * rows + min(first + warp * 16 + lane / 4 + 8, rows - 1);
        const float scales[2] = {__ldg(scale + low), __ldg(scale + high)};
        const float biases[2] = {__ldg(bias + low), __ldg(bias + high)};
#pragma unroll
        for (int part = 0; part < kColumns / kStoreRows; ++part) {
          if (column + part * kStoreRows >= batch) break;
          const unsigned target = staging_ + (2 * group + buffer) * kStoreBytes;
          if (threadIdx.x % 128 == 0) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
          asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
#pragma unroll
          for (int i = 0; i < kStoreRows / 16; ++i) {
            const float* u = sums[span] + (part * kStoreRows / 16 + i) * 8;
            unsigned pairs[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
              pairs[j] = Element<T>::pack(
                  Activation::apply(fmaf(u[2 * j], scales[j % 2], biases[j % 2])),
                  Activation::apply(fmaf(u[2 * j + 1], scales[j % 2], biases[j % 2])));
            const int at = i * 16 + line;
            store_transposed(target + at * 128 + ((chunk ^ (at & 7)) << 4), pairs[0], pairs[1],
                             pairs[2], pairs[3]);
          }
          asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
          asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
          if (threadIdx.x % 128 == 0) {
            store_box(y_map, first, copy, column + part * kStoreRows, target);
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
          }
          buffer ^= 1;
        }
      }
    }
  }
};

}  // namespace tbn
#endif
#endif
