// The part of ONNX Runtime's C interface this library uses, at its published, stable positions.
// Checked against ONNX Runtime 1.17 to 1.32. A gap is a run of slots that we do not call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tbn::ort {

struct Status;
struct Value;
struct TensorInfo;
struct MemoryInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct OperatorAttribute;
struct SessionOptions;
struct OperatorDomain;
struct CustomOperator;

constexpr std::uint32_t api_version = 17;  // the first whose custom operators infer shapes

enum StatusCode : int {
  status_fail = 1,
  status_invalid_argument = 2,
  status_runtime_exception = 6
};
enum TensorType : int {
  tensor_float32 = 1,
  tensor_uint8 = 2,
  tensor_float16 = 10,
  tensor_bfloat16 = 16
};
enum AttributeType : int { attribute_int = 1, attribute_ints = 2, attribute_string = 5 };
enum Presence : int { required_value = 0, optional_value = 1 };

struct Allocator {
  std::uint32_t version;
  void* (*allocate)(Allocator*, std::size_t bytes);
  void (*free)(Allocator*, void*);
  const MemoryInfo* (*info)(const Allocator*);
};

using Slot = void (*)();

struct Api {
  Status* (*create_status)(int code, const char* message);
  Slot gap_1[25];
  Status* (*create_domain)(const char* name, OperatorDomain**);
  Status* (*add_operator)(OperatorDomain*, const CustomOperator*);
  Status* (*add_domain)(SessionOptions*, OperatorDomain*);
  Slot gap_29[22];
  Status* (*tensor_data)(Value*, void**);
  Slot gap_52[5];
  Status* (*create_tensor_info)(TensorInfo**);
  Status* (*set_element_type)(TensorInfo*, TensorType);
  Status* (*set_dimensions)(TensorInfo*, const std::int64_t*, std::size_t count);
  Status* (*element_type)(const TensorInfo*, TensorType*);
  Status* (*dimension_count)(const TensorInfo*, std::size_t*);
  Status* (*dimensions)(const TensorInfo*, std::int64_t*, std::size_t count);
  Status* (*symbolic_dimensions)(const TensorInfo*, const char**, std::size_t count);
  Slot gap_64[1];
  Status* (*tensor_info)(const Value*, TensorInfo**);
  Slot gap_66[12];
  Status* (*default_allocator)(Allocator**);
  Slot gap_79[6];
  Status* (*attribute_float)(const KernelInfo*, const char* name, float*);
  Status* (*attribute_int64)(const KernelInfo*, const char* name, std::int64_t*);
  Status* (*attribute_text)(const KernelInfo*, const char* name, char*, std::size_t* length);
  Status* (*input_count)(const KernelContext*, std::size_t*);
  Slot gap_89[1];
  Status* (*input)(const KernelContext*, std::size_t index, const Value**);
  Status* (*output)(KernelContext*, std::size_t index, const std::int64_t*, std::size_t, Value**);
  Slot gap_92[1];
  void (*release_status)(Status*);
  Slot gap_94[5];
  void (*release_tensor_info)(TensorInfo*);
  Slot gap_100[32];
  void (*release_allocator)(Allocator*);
  Slot gap_133[30];
  Status* (*attribute_int64s)(const KernelInfo*, const char* name, std::int64_t*, std::size_t*);
  Slot gap_164[80];
  Status* (*node_name)(const KernelInfo*, char*, std::size_t* length);
  Slot gap_245[4];
  Status* (*constant_input)(const KernelInfo*, std::size_t index, int* is_constant, const Value**);
  Slot gap_250[3];
  Status* (*context_allocator)(const KernelContext*, const MemoryInfo*, Allocator**);
  Slot gap_254[14];
  Status* (*shape_input)(const ShapeContext*, std::size_t index, TensorInfo**);
  Status* (*shape_attribute)(const ShapeContext*, const char* name, const OperatorAttribute**);
  Status* (*shape_output)(const ShapeContext*, std::size_t index, const TensorInfo*);
  Status* (*set_symbolic_dimensions)(TensorInfo*, const char**, std::size_t count);
  Status* (*read_attribute)(const OperatorAttribute*, AttributeType, void*, std::size_t bytes,
                            std::size_t* bytes_needed);
  Slot gap_273[1];
  Status* (*parallel_for)(const KernelContext*, void (*)(void*, std::size_t), std::size_t total,
                          std::size_t batches, void* data);
};

#define TBN_AT_SLOT(member, slot) \
  static_assert(offsetof(Api, member) == (slot) * sizeof(Slot), #member " is in the wrong slot")
TBN_AT_SLOT(create_domain, 26);
TBN_AT_SLOT(tensor_data, 51);
TBN_AT_SLOT(set_dimensions, 59);
TBN_AT_SLOT(tensor_info, 65);
TBN_AT_SLOT(default_allocator, 78);
TBN_AT_SLOT(attribute_float, 85);
TBN_AT_SLOT(output, 91);
TBN_AT_SLOT(release_status, 93);
TBN_AT_SLOT(release_tensor_info, 99);
TBN_AT_SLOT(release_allocator, 132);
TBN_AT_SLOT(attribute_int64s, 163);
TBN_AT_SLOT(node_name, 244);
TBN_AT_SLOT(constant_input, 249);
TBN_AT_SLOT(context_allocator, 253);
TBN_AT_SLOT(shape_input, 268);
TBN_AT_SLOT(parallel_for, 274);
#undef TBN_AT_SLOT

struct ApiBase {
  const Api* (*get)(std::uint32_t version);
  const char* (*version_text)();
};

struct CustomOperator {
  std::uint32_t version;
  void* (*create_kernel_v1)(const CustomOperator*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOperator*);
  const char* (*provider)(const CustomOperator*);
  TensorType (*input_type)(const CustomOperator*, std::size_t);
  std::size_t (*input_count)(const CustomOperator*);
  TensorType (*output_type)(const CustomOperator*, std::size_t);
  std::size_t (*output_count)(const CustomOperator*);
  void (*compute_v1)(void* kernel, KernelContext*);
  void (*destroy)(void* kernel);
  Presence (*input_presence)(const CustomOperator*, std::size_t);
  Presence (*output_presence)(const CustomOperator*, std::size_t);
  int (*input_memory)(const CustomOperator*, std::size_t);
  int (*variadic_input_least)(const CustomOperator*);
  int (*variadic_input_homogeneous)(const CustomOperator*);
  int (*variadic_output_least)(const CustomOperator*);
  int (*variadic_output_homogeneous)(const CustomOperator*);
  Status* (*create_kernel)(const CustomOperator*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute)(void* kernel, KernelContext*);
  Status* (*infer_shape)(const CustomOperator*, ShapeContext*);
  int (*first_version)(const CustomOperator*);
  int (*last_version)(const CustomOperator*);
  std::size_t (*may_reuse)(int** inputs, int** outputs);
  void (*release_may_reuse)(int* inputs, int* outputs);
  std::size_t (*aliases)(int** inputs, int** outputs);
  void (*release_aliases)(int* inputs, int* outputs);
};
static_assert(sizeof(CustomOperator) == 26 * sizeof(void*));

}  // namespace tbn::ort
