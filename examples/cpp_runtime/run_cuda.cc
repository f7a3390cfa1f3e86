// Runs what `tbn-compile --target cuda` wrote, with TVM's runtime alone and no Python: a model of
// one float32 input and one float32 output, values from stdin, results to stdout, both binary.
// Build it as README.md says, then: ./run_cuda ./model.so 1 784 < input.bin > output.bin
#include <cuda_runtime_api.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

struct DeviceMemory {
  void AllocData(DLTensor* t) { cudaMalloc(&t->data, tvm::ffi::GetDataSize(*t)); }
  void FreeData(DLTensor* t) { cudaFree(t->data); }
};

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: %s ./MODEL.so EXTENT...\n", argv[0]), 2;
  using namespace tvm::ffi;
  Module library = Module::LoadFromFile(argv[1]);
  Module machine = library->GetFunction("vm_load_executable").value()().cast<Module>();
  constexpr int pooled_allocator = 2;
  machine->GetFunction("vm_initialization")
      .value()(int{kDLCUDA}, 0, pooled_allocator, int{kDLCPU}, 0, pooled_allocator);

  std::vector<int64_t> shape;
  for (int i = 2; i < argc; ++i) shape.push_back(std::atoll(argv[i]));
  Tensor input = Tensor::FromNDAlloc(DeviceMemory(), Shape(shape), {kDLFloat, 32, 1}, {kDLCUDA, 0});
  std::vector<float> values(input.numel());
  if (std::fread(values.data(), sizeof(float), values.size(), stdin) != values.size()) return 1;
  const size_t bytes = values.size() * sizeof(float);
  if (cudaMemcpy(input.data_ptr(), values.data(), bytes, cudaMemcpyHostToDevice)) return 1;

  Tensor output = machine->GetFunction("main").value()(input).cast<Tensor>();
  values.resize(output.numel());
  const size_t results = values.size() * sizeof(float);
  if (cudaMemcpy(values.data(), output.data_ptr(), results, cudaMemcpyDeviceToHost)) return 1;
  return std::fwrite(values.data(), 1, results, stdout) == results ? 0 : 1;
}
