// All code of a guest that runs at CPL0, unless `ring=0` has the body run there, too, and the tables
// that it needs.
//
// Hosts without hardware virtualization emulate CPL0 slowly and incompletely, so this is limited to
// a few dozen plain integer instructions per vCPU: the assembler lays out the tables instead of
// code that builds them at run time, and what CPL3 can do (8259s, LAPIC, AP start, page tables
// above 4 GiB) is left to the Rust code there.
//
// AT&T syntax; words in braces are constants from shim.rs. The linker script pins `.tables` and
// `.shim` to the addresses that the split descriptors below are computed from.

// ---------------------------------------------------------------------------------------------
// PVH note: the entry point in 32-bit protected mode, paging off, EBX = hvm_start_info.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                      // name size, value size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

// ---------------------------------------------------------------------------------------------
// Tables.

    .section .tables, "aw", @progbits

// The first 4 GiB, identity-mapped with 2 MiB pages that CPL3 may access. Accessed and dirty are
// already set, so that no page walk has to write.
    .globl page_directory_pointers, tss
pml4:
    .quad page_directory_pointers + 0x27
    .fill 511, 8, 0
page_directory_pointers:
    .quad page_directories + 0x0027
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 2048
    .if page == {lapic} & ~0x1fffff
    .quad page + 0xff                   // uncached
    .else
    .quad page + 0xe7
    .endif
    .set page, page + 0x200000
    .endr

// One TSS per vCPU: the stack for exceptions, twice, because only a stack of the interrupt stack table
// is switched to at CPL0, another stack for what may interrupt a handler (see kernel_mode.rs), and a
// bitmap that opens the first 4096 I/O ports to CPL3 (some hosts ignore IOPL).
tss:
    .set cpu, 0
    .rept {max_cpus}
    .balign {tss_stride}
    .long 0
    .quad kernel_stacks + (cpu + 1) * {kernel_stack}
    .fill 24, 1, 0
    .quad kernel_stacks + (cpu + 1) * {kernel_stack}
    .quad kernel_stacks + cpu * {kernel_stack} + {kernel_stack} / 2
    .fill 50, 1, 0
    .short 104                          // offset of the bitmap
    .fill 512, 1, 0
    .byte 0xff
    .set cpu, cpu + 1
    .endr

    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            // 0x08: code, CPL0, 32 bits
    .quad 0x00af9b000000ffff            // 0x10: code, CPL0, 64 bits
    .quad 0x00cf93000000ffff            // 0x18: data, CPL0
    .quad 0x00cff3000000ffff            // 0x20: data, CPL3
    .quad 0x00affb000000ffff            // 0x28: code, CPL3, 64 bits
    .set cpu, 0                         // 0x30: a TSS per vCPU
    .rept {max_cpus}
    .set base, {tables} + 0x6000 + cpu * {tss_stride}
    .short 104 + 512
    .short base & 0xffff
    .byte base >> 16 & 0xff, 0x89, 0, base >> 24
    .quad 0
    .set cpu, cpu + 1
    .endr
gdt_end:

    .balign 16
    .globl idt, idt_end
idt:
    .set vector, 0
    .rept 256
    .short ({shim} + vector * 16) & 0xffff, 0x10
    .short 0x8e00
    .short ({shim} + vector * 16) >> 16
    .quad 0
    .set vector, vector + 1
    .endr
idt_end:

    .balign 8
gdt_pointer:
    .short gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .short idt_end - idt - 1
    .quad idt

    .section .noinit, "aw", @nobits
    .globl kernel_stacks, user_stacks, high_page_directories
    .balign 4096
high_page_directories:                  // for RAM above 4 GiB, filled in by paging.rs
    .skip {high_gib} * 4096
kernel_stacks:
    .skip {max_cpus} * {kernel_stack}
user_stacks:
    .skip {max_cpus} * {user_stack}

// The data that the handlers below share with interrupts.rs: all zero at boot, never cleared.

    .section .data
    .balign 64
    .globl interrupt_counts, interrupt_modes, fixups, faults
interrupt_counts:                       // a word per vCPU and vector
    .fill {max_cpus} * 256, 8, 0
interrupt_modes:                        // a byte per vector
    .fill 256, 1, 0
fixups:                                 // a word per vCPU: where to continue after an exception
    .fill {max_cpus}, 8, 0
faults:                                 // a word per vCPU: the vector that went there, plus 1
    .fill {max_cpus}, 8, 0

// ---------------------------------------------------------------------------------------------
// Exceptions and interrupts: 256 stubs of 16 bytes, at the very start of `.shim`.

    .section .shim, "ax", @progbits
    .code64
    .globl stubs
stubs:
    .set vector, 0
    .rept 256
    .balign 16, 0xcc
    .if vector < 32 && (0x60227d00 >> vector) & 1 // 8, 10 to 14, 17, 21, 29, 30 push an error code
    .else
    pushq $0
    .endif
    pushq $vector
    .if vector == 1 || vector == 2 || vector >= 32
    jmp interrupt
    .else
    jmp exception
    .endif
    .set vector, vector + 1
    .endr
    .balign 16, 0xcc

// An interrupt that the body expects is counted per vCPU and vector; any other is damage.
interrupt:
    pushq %rax
    pushq %rcx
    movl 16(%rsp), %ecx
    movzbl interrupt_modes(%rcx), %eax
    testl %eax, %eax
    jz 2f
    pushq %rax
    movl %esp, %eax
    subl $kernel_stacks, %eax
    shrl ${kernel_stack_shift}, %eax
    shll $8, %eax
    addl %ecx, %eax
    incq interrupt_counts(,%rax,8)
    popq %rax
    cmpl ${mode_eoi}, %eax
    jne 1f
    movl ${lapic}, %eax
    movl $0, 0xb0(%rax)
1:  popq %rcx
    popq %rax
    addq $16, %rsp
    iretq
2:  popq %rcx
    popq %rax

// `ud2` with the right EAX is the gate from CPL3: it stops the vCPU, at CPL0 too, or calls the
// function at RDI at CPL0. (A fault, not `int3`: KVM does not save a breakpoint that is being delivered.) An
// exception that the body is prepared for continues at its fixup. Any other is damage and does not
// return: the first one of the machine is recorded, then the vCPU stops.
exception:
    cmpl $6, (%rsp)
    jne 1f
    cmpl ${gate_stop}, %eax
    je stop
    cmpl ${gate_call}, %eax
    jne 1f
    addq $16, %rsp
    addq $2, (%rsp)
    call *%rdi
    iretq
1:  pushq %rax
    pushq %rcx
    movl %esp, %eax
    subl $kernel_stacks, %eax
    shrl ${kernel_stack_shift}, %eax
    movq fixups(,%rax,8), %rcx
    testq %rcx, %rcx
    jz 2f
    movq $0, fixups(,%rax,8)
    movq %rcx, 32(%rsp)                 // RIP
    movl 16(%rsp), %ecx
    incl %ecx
    movq %rcx, faults(,%rax,8)
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq
2:  popq %rcx
    popq %rax
    movl ${damage}, %ebx
    xorl %eax, %eax                     // NONE
    movl ${writing}, %ecx
    lock cmpxchgl %ecx, {state}(%rbx)
    jne stop
    movl ${kind_exception}, {kind}(%rbx)
    movl %esp, %eax
    subl $kernel_stacks, %eax
    shrl ${kernel_stack_shift}, %eax
    movl %eax, {cpu}(%rbx)
    popq %rax
    movl %eax, {vector}(%rbx)
    xorl %edx, %edx
    cmpl $14, %eax
    jne 3f
    movq %cr2, %rdx
3:  movq %rdx, {address}(%rbx)
    popq %rax
    movq %rax, {error_code}(%rbx)
    popq %rax
    movq %rax, {rip}(%rbx)
    popq %rax
    movq %rax, {detail}(%rbx)           // CS: the low two bits are the CPL
    movl ${valid}, {state}(%rbx)
    movl ${damaged}, {phase}
stop:
    cli
    hlt
    jmp stop

// ---------------------------------------------------------------------------------------------
// Entry points. EDI is the address of hvm_start_info on the boot vCPU, 0 on the others.

    .code32
    .globl pvh_entry, long_mode, ap_entry, gdt_pointer, idt_pointer, pml4
pvh_entry:
    cli
    cld
    movl %ebx, %edi
enter_long_mode:
    lgdt gdt_pointer
    movl $0x620, %eax                   // PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              // EFER.LME
    xorl %edx, %edx
    movl $0x100, %eax
    wrmsr
    movl $0x80010033, %eax              // PG, WP, NE, ET, MP, PE; caches on
    movl %eax, %cr0
    ljmpl $0x10, $long_mode

    .code64
long_mode:
    movl $0x23, %eax
    movl %eax, %ds
    movl %eax, %es
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    lidt idt_pointer
    movl ${lapic}, %ebx
    movl 0x20(%rbx), %esi               // the LAPIC's own ID: right whatever CPUID says
    shrl $24, %esi
    cmpl ${max_cpus}, %esi
    jae stop

    movl %esi, %eax
    shll ${kernel_stack_shift}, %eax
    leal kernel_stacks + {kernel_stack}(%rax), %esp

    leal 0x30(,%rsi,8), %eax
    leal (%rax,%rsi,8), %eax
    andb $0xfd, gdt + 5(%rax)           // not busy: a reset may leave the tables as they were
    ltr %ax

    movl %esi, %eax
    shll ${user_stack_shift}, %eax
    leal user_stacks + {user_stack}(%rax), %eax
    pushq $0x23
    pushq %rax
    pushq $2                            // interrupts stay off
    pushq $0x2b
    pushq $user_entry
    iretq

// A firmware image, which ends with a copy of this, starts here in real mode at the top of the
// first 4 GiB: whatever RAM contains, it copies itself to its proper address.
    .section .reset, "a", @progbits
    .globl reset
    .set high, 0xffffff00               // address of the copy; in real mode its offset is 0xff00
reset:
    .code16
    cli
    cld
    lgdtl %cs:0xff00 + reset_gdt_pointer - reset
    movl $0x11, %eax                    // PE
    movl %eax, %cr0
    ljmpl $0x08, $high + reset_protected - reset
    .code32
reset_protected:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl $__rom, %esi
    movl ${tables}, %edi
    movl $__loaded_words, %ecx
    rep movsl
    movl ${from_firmware}, %ebx
    ljmpl $0x08, $pvh_entry
    .balign 4
reset_gdt_pointer:
    .short gdt_end - gdt - 1
    .long __rom_gdt
    .org 0xf0
    .code16
    jmp reset
    .org 0x100

// After SIPI a vCPU starts in real mode at the copy of this code below 1 MiB.
    .section .shim, "ax", @progbits
    .code16
    .globl trampoline, trampoline_end
trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt - trampoline
    movl $0x11, %eax                    // PE
    movl %eax, %cr0
    ljmpl $0x08, $ap_entry
    .balign 4
trampoline_gdt:
    .short gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .code32
ap_entry:
    movl $0x18, %eax
    movl %eax, %ds
    xorl %edi, %edi
    jmp enter_long_mode

// ---------------------------------------------------------------------------------------------
// From here on at CPL3.

    .code64
user_entry:
    fninit
    ldmxcsr mxcsr
    testl %edi, %edi
    jz 1f
    movl %edi, %edx                     // clear .bss: loaders need not, and a reset leaves it dirty
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    xorl %eax, %eax
    rep stosb
    movl %edx, %edi
1:  call guest_entry                    // (hvm_start_info, vCPU)
    ud2

    .balign 4
mxcsr:
    .long 0x1f80
