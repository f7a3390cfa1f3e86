/* Vector table and start-up of Arm Cortex-M, in instructions that every one of them has. */
#include "board.h"

    .syntax unified
    .thumb

    .section .vectors, "a"
    .balign 4
    .word tbn_stack_top
    .word tbn_reset
    .rept 14 /* of the core itself; nothing enables the interrupts behind them */
    .word tbn_fault
    .endr

    .text
    .balign 4
    .global tbn_reset
    .type tbn_reset, %function
tbn_reset:
    ldr r0, =tbn_data_start
    ldr r1, =tbn_data_end
    ldr r2, =tbn_data_load
copy_data:
    cmp r0, r1
    bhs data_copied
    ldr r3, [r2]
    str r3, [r0]
    adds r0, #4
    adds r2, #4
    b copy_data
data_copied:
    ldr r0, =tbn_bss_start
    ldr r1, =tbn_bss_end
    movs r2, #0
clear_bss:
    cmp r0, r1
    bhs bss_cleared
    str r2, [r0]
    adds r0, #4
    b clear_bss
bss_cleared:
    /* Nothing lies on the stack yet, so that all of it can be painted. */
    ldr r0, =tbn_stack_limit
    ldr r1, =tbn_stack_top
    ldr r2, =TBN_STACK_PAINT
paint_stack:
    cmp r0, r1
    bhs stack_painted
    str r2, [r0]
    adds r0, #4
    b paint_stack
stack_painted:
#ifdef __ARM_FP
    ldr r0, =0xE000ED88 /* CPACR: full access to the floating-point coprocessors 10 and 11 */
    ldr r1, [r0]
    ldr r2, =0x00F00000
    orrs r1, r2
    str r1, [r0]
    dsb
    isb
#endif
    bl main
    bl tbn_exit
    .size tbn_reset, . - tbn_reset

    .global tbn_fault
    .type tbn_fault, %function
tbn_fault:
    ldr r0, =tbn_stack_top
    mov sp, r0
    mrs r0, ipsr
    adds r0, #TBN_FAULT
    bl tbn_exit
    .size tbn_fault, . - tbn_fault

    .global tbn_semihosting
    .type tbn_semihosting, %function
tbn_semihosting:
    bkpt 0xAB
    bx lr
    .size tbn_semihosting, . - tbn_semihosting
