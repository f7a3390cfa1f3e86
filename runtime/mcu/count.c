/* A plug-in of QEMU that counts the instructions, loads and stores of each operator of a model.

   Counting goes on between the entries of two marker functions. What runs in the executor counts
   for it, until it enters an operator: that is a new call, and what runs from then on counts for
   the call, the helpers of compiler and C library among it, until the executor goes on.

   Arguments: functions=FILE counts=FILE. The first file holds hexadecimal numbers: the entry of
   each marker, then for each function of the model its begin, its end, and 1 for an operator or 0
   for the executor. The second file gets three numbers for the executor and for each call. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Version 1 of the interface, as far as it is used here; distributions ship no header of it. */
#define EXPORT __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb*);
typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned int, void*);
typedef void (*qemu_plugin_vcpu_mem_cb_t)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void*);
typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t, void*);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn*, qemu_plugin_vcpu_udata_cb_t,
                                            enum qemu_plugin_cb_flags, void*);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn*, qemu_plugin_vcpu_mem_cb_t,
                                      enum qemu_plugin_cb_flags, enum qemu_plugin_mem_rw, void*);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, qemu_plugin_udata_cb_t, void*);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn*);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);

EXPORT extern const int qemu_plugin_version;
const int qemu_plugin_version = 1;

typedef struct {
  uint64_t begin, end, is_operator;
} function_t;

typedef struct {
  uint64_t instructions, loads, stores;
} counts_t;

static uint64_t start_marker, stop_marker;
static function_t* functions;
static size_t function_count;
static counts_t* counts; /* the executor's, then one for each call */
static size_t counts_used;
static size_t current;
static bool counting;
static const char* counts_path;

static void enter(const function_t* function) {
  if (!function->is_operator) {
    current = 0;
  } else if (current == 0) {
    counts_t* grown = realloc(counts, (counts_used + 1) * sizeof *counts);
    if (grown == NULL) {
      abort();
    }
    counts = grown;
    current = counts_used++;
    counts[current] = (counts_t){0};
  }
}

static void count_instruction(unsigned int cpu, void* function) {
  (void)cpu;
  if (!counting) {
    return;
  }
  if (function != NULL) {
    enter(function);
  }
  counts[current].instructions++;
}

static void count_access(unsigned int cpu, qemu_plugin_meminfo_t access, uint64_t address,
                         void* unused) {
  (void)cpu, (void)address, (void)unused;
  if (!counting) {
    return;
  }
  if (qemu_plugin_mem_is_store(access)) {
    counts[current].stores++;
  } else {
    counts[current].loads++;
  }
}

static void start_counting(unsigned int cpu, void* unused) {
  (void)cpu, (void)unused;
  counting = true;
  current = 0;
}

static void stop_counting(unsigned int cpu, void* unused) {
  (void)cpu, (void)unused;
  counting = false;
}

static function_t* find_function(uint64_t address) {
  for (size_t i = 0; i < function_count; i++) {
    if (functions[i].begin <= address && address < functions[i].end) {
      return &functions[i];
    }
  }
  return NULL;
}

static void instrument(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  const size_t count = qemu_plugin_tb_n_insns(block);
  for (size_t i = 0; i < count; i++) {
    struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(block, i);
    const uint64_t address = qemu_plugin_insn_vaddr(instruction);
    if (address == stop_marker) {
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, stop_counting, QEMU_PLUGIN_CB_NO_REGS,
                                             NULL);
    }
    qemu_plugin_register_vcpu_insn_exec_cb(instruction, count_instruction, QEMU_PLUGIN_CB_NO_REGS,
                                           find_function(address));
    qemu_plugin_register_vcpu_mem_cb(instruction, count_access, QEMU_PLUGIN_CB_NO_REGS,
                                     QEMU_PLUGIN_MEM_RW, NULL);
    if (address == start_marker) {
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, start_counting, QEMU_PLUGIN_CB_NO_REGS,
                                             NULL);
    }
  }
}

static void write_counts(qemu_plugin_id_t id, void* unused) {
  (void)id, (void)unused;
  FILE* file = fopen(counts_path, "w");
  if (file == NULL) {
    return;
  }
  for (size_t i = 0; i < counts_used; i++) {
    fprintf(file, "%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", counts[i].instructions,
            counts[i].loads, counts[i].stores);
  }
  fclose(file);
}

static bool read_functions(const char* path) {
  FILE* file = fopen(path, "r");
  if (file == NULL) {
    return false;
  }
  bool good = fscanf(file, "%" SCNx64 " %" SCNx64, &start_marker, &stop_marker) == 2;
  function_t next;
  while (good && fscanf(file, "%" SCNx64 " %" SCNx64 " %" SCNx64, &next.begin, &next.end,
                        &next.is_operator) == 3) {
    function_t* grown = realloc(functions, (function_count + 1) * sizeof *functions);
    good = grown != NULL;
    if (good) {
      functions = grown;
      functions[function_count++] = next;
    }
  }
  fclose(file);
  return good;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc,
                               char** argv);
int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc, char** argv) {
  (void)info;
  const char* functions_path = NULL;
  for (int i = 0; i < argc; i++) {
    if (strncmp(argv[i], "functions=", 10) == 0) {
      functions_path = argv[i] + 10;
    } else if (strncmp(argv[i], "counts=", 7) == 0) {
      counts_path = strdup(argv[i] + 7);
    }
  }
  counts = calloc(1, sizeof *counts);
  counts_used = 1;
  if (functions_path == NULL || counts_path == NULL || counts == NULL ||
      !read_functions(functions_path)) {
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, instrument);
  qemu_plugin_register_atexit_cb(id, write_counts, NULL);
  return 0;
}
