/* Start-up of 32-bit RISC-V in machine mode. */
#include "board.h"

    .section .vectors, "ax"
    .balign 4
    .global tbn_reset
    .type tbn_reset, %function
tbn_reset:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    la t0, tbn_fault
    csrw mtvec, t0

    la t0, tbn_data_start
    la t1, tbn_data_end
    la t2, tbn_data_load
copy_data:
    bgeu t0, t1, data_copied
    lw t3, 0(t2)
    sw t3, 0(t0)
    addi t0, t0, 4
    addi t2, t2, 4
    j copy_data
data_copied:
    la t0, tbn_bss_start
    la t1, tbn_bss_end
clear_bss:
    bgeu t0, t1, bss_cleared
    sw zero, 0(t0)
    addi t0, t0, 4
    j clear_bss
bss_cleared:
    /* Nothing lies on the stack yet, so that all of it can be painted. */
    la t0, tbn_stack_limit
    la sp, tbn_stack_top
    li t1, TBN_STACK_PAINT
paint_stack:
    bgeu t0, sp, stack_painted
    sw t1, 0(t0)
    addi t0, t0, 4
    j paint_stack
stack_painted:
#ifdef __riscv_flen
    li t0, 0x6000 /* mstatus.FS: the floating-point registers are on */
    csrs mstatus, t0
    csrw fcsr, zero
#endif
    call main
    call tbn_exit
    .size tbn_reset, . - tbn_reset

    .balign 4
    .global tbn_fault
    .type tbn_fault, %function
tbn_fault:
    la sp, tbn_stack_top
    csrr a0, mcause
    andi a0, a0, 63
    addi a0, a0, TBN_FAULT
    call tbn_exit
    .size tbn_fault, . - tbn_fault

    .text
    .balign 16 /* the three instructions must not lie on two pages */
    .global tbn_semihosting
    .type tbn_semihosting, %function
tbn_semihosting:
    .option push
    .option norvc
    slli zero, zero, 0x1f
    ebreak
    srai zero, zero, 7
    .option pop
    ret
    .size tbn_semihosting, . - tbn_semihosting
