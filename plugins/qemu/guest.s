# A guest without an operating system, for QEMU's -kernel (multiboot). It counts the lines that come by COM1, keeps an FNV-1a
# digest of all their bytes, and answers each with both: "00000002 811c9dc5". So a byte that is lost, doubled or out of
# order shows in every answer that follows.
#
# While nothing comes the processor is halted: interrupts from the UART wake it, so that they too are part of what is
# saved and loaded.

.code32
.set COM1, 0x3f8
.set PIC1, 0x20
.set PIC2, 0xa0
.set FNV_OFFSET, 0x811c9dc5
.set FNV_PRIME, 0x01000193

.section .text
.align 4
.long 0x1badb002, 0, -0x1badb002                # multiboot: magic, flags, checksum

.globl _start
_start:
	cli
	movl	$stack_top, %esp
	lgdt	gdt_pointer
	ljmp	$8, $segments                   # multiboot promises segments, but no table that they could be loaded from
segments:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$interrupt, %eax
	movw	%ax, idt_com1
	shrl	$16, %eax
	movw	%ax, idt_com1 + 6
	lidt	idt_pointer

	# IRQ 0 to 15 become vectors 32 to 47; only IRQ 4, COM1, is let through.
	movb	$0x11, %al
	outb	%al, $PIC1
	outb	%al, $PIC2
	movb	$32, %al
	outb	%al, $PIC1 + 1
	movb	$40, %al
	outb	%al, $PIC2 + 1
	movb	$4, %al
	outb	%al, $PIC1 + 1
	movb	$2, %al
	outb	%al, $PIC2 + 1
	movb	$1, %al
	outb	%al, $PIC1 + 1
	outb	%al, $PIC2 + 1
	movb	$0xef, %al
	outb	%al, $PIC1 + 1
	movb	$0xff, %al
	outb	%al, $PIC2 + 1

	# The FIFOs stay off: to turn them on empties them, and the job may have sent something already.
	movw	$COM1 + 4, %dx                  # DTR, RTS, OUT2: the last lets interrupts out
	movb	$11, %al
	outb	%al, %dx
	movw	$COM1 + 1, %dx                  # an interrupt when something has come
	movb	$1, %al
	outb	%al, %dx

	xorl	%esi, %esi                      # lines
	movl	$FNV_OFFSET, %edi               # the digest

next:
	movw	$COM1 + 5, %dx
	inb	%dx, %al
	testb	$1, %al
	jnz	received
	sti                                     # takes effect after the next instruction: nothing can come in between
	hlt
	cli
	jmp	next

received:
	movw	$COM1, %dx
	xorl	%eax, %eax
	inb	%dx, %al
	xorl	%eax, %edi
	imull	$FNV_PRIME, %edi, %edi
	cmpb	$'\n', %al
	jne	next
	incl	%esi
	movl	%esi, %ebx
	call	say_number
	movb	$' ', %al
	call	say
	movl	%edi, %ebx
	call	say_number
	movb	$'\n', %al
	call	say
	jmp	next

# Says %ebx in eight hexadecimal digits.
say_number:
	movl	$8, %ecx
digit:
	roll	$4, %ebx
	movl	%ebx, %eax
	andl	$15, %eax
	movb	digits(%eax), %al
	call	say
	loop	digit
	ret

# Says the byte %al.
say:
	movb	%al, %ah
	movw	$COM1 + 5, %dx
busy:
	inb	%dx, %al
	testb	$0x20, %al
	jz	busy
	movb	%ah, %al
	movw	$COM1, %dx
	outb	%al, %dx
	ret

interrupt:
	pushl	%eax
	movb	$0x20, %al
	outb	%al, $PIC1
	popl	%eax
	iret

.section .data
digits:	.ascii	"0123456789abcdef"
.align 8
gdt:	.quad	0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
.align 8
idt:	.fill	36, 8, 0
idt_com1:                                       # vector 36; the address comes at the start
	.word	0, 8, 0x8e00, 0
idt_pointer:
	.word	. - idt - 1
	.long	idt

.section .bss
.align 16
	.skip	4096
stack_top:
