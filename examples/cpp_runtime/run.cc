// Runs what `tbn-compile --target llvm` wrote, with TVM's runtime alone and no Python: a model of
// one float32 input and one float32 output, values from stdin, results to stdout, both binary.
// Build it as README.md says, then: ./run ./model.so 1 784 < input.bin > output.bin
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

struct HostMemory {
  void AllocData(DLTensor* t) { t->data = std::aligned_alloc(64, Padded(tvm::ffi::GetDataSize(*t))); }
  void FreeData(DLTensor* t) { std::free(t->data); }
  static size_t Padded(size_t bytes) { return (bytes + 63) / 64 * 64; }
};

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: %s ./MODEL.so EXTENT...\n", argv[0]), 2;
  using namespace tvm::ffi;
  Module library = Module::LoadFromFile(argv[1]);
  Module machine = library->GetFunction("vm_load_executable").value()().cast<Module>();
  constexpr int pooled_allocator = 2;
  machine->GetFunction("vm_initialization").value()(int{kDLCPU}, 0, pooled_allocator);

  std::vector<int64_t> shape;
  for (int i = 2; i < argc; ++i) shape.push_back(std::atoll(argv[i]));
  Tensor input = Tensor::FromNDAlloc(HostMemory(), Shape(shape), {kDLFloat, 32, 1}, {kDLCPU, 0});
  const size_t count = static_cast<size_t>(input.numel());
  if (std::fread(input.data_ptr(), sizeof(float), count, stdin) != count) return 1;

  Tensor output = machine->GetFunction("main").value()(input).cast<Tensor>();
  const size_t results = static_cast<size_t>(output.numel());
  return std::fwrite(output.data_ptr(), sizeof(float), results, stdout) == results ? 0 : 1;
}
