// SPDX-License-Identifier: GPL-2.0-only
/*
 * A zoo of kernel crashes: write the name of an animal into /proc/kboot_zoo, and the writer's
 * context meets it. Every animal lives in a function of its own, zoo_<name>, which is what a crash
 * report has to name.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/proc_fs.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

/*
 * Read where the compiler must not know the value. Written at the end of a function whose last call
 * must not become a jump, for then the function were not in the trace.
 */
static volatile unsigned long nothing;

static unsigned long seconds = 5;
module_param(seconds, ulong, 0);
MODULE_PARM_DESC(seconds, "How long lockups, stalls and hung tasks last");

static noinline void zoo_null(void)
{
	*(volatile int *)nothing = 1;
}

/*
 * A canonical address where nothing is ever mapped: in the gap before the vmalloc area, or where
 * only the last page of 128 TiB of memory were. And what no processor takes for an instruction; ud1,
 * for ud2 is how the kernel spells BUG.
 */
#ifdef CONFIG_ARM64
#define UNMAPPED 0xffff7ffffffff000UL
#define UNDEFINED ".inst 0x00000000"
#else
#define UNMAPPED 0xffffc8fffffff000UL
#define UNDEFINED ".byte 0x0f, 0xb9, 0xc0"
#endif

static noinline void zoo_bad_address(void)
{
	*(volatile int *)(UNMAPPED + nothing) = 1;
}

static noinline void zoo_non_canonical(void)
{
	*(volatile int *)(0xdead000000000000UL + nothing) = 1;
}

static noinline void zoo_call_null(void)
{
	void (*function)(void) = (void *)nothing;

	function();
	nothing = 0;
}

static noinline void zoo_bug(void)
{
	BUG_ON(!nothing);
}

static noinline void zoo_warn(void)
{
	WARN_ON(!nothing);
}

static noinline void zoo_warn_text(void)
{
	WARN(!nothing, "the zoo is open on day %lu\n", nothing);
}

static noinline void zoo_list(void)
{
	LIST_HEAD(head);
	struct list_head one, two;

	list_add(&one, &head);
	head.next = &two;
	two.prev = &two;
	list_add(&two, &head);
}

static noinline void zoo_refcount(void)
{
	refcount_t count;

	refcount_set(&count, 0);
	refcount_inc(&count);
}

static noinline void zoo_usercopy(char __user *user)
{
	void *object = kmalloc(32, GFP_KERNEL);

	/* Hide the size from the compiler, whose own check would come first. */
	OPTIMIZER_HIDE_VAR(object);
	if (object && copy_to_user(user, object, 4096 + nothing))
		pr_info("not copied\n");
	kfree(object);
}

static noinline void zoo_divide(void)
{
	nothing = 1000 / nothing;
}

static noinline void zoo_invalid_opcode(void)
{
	if (!nothing)
		asm volatile(UNDEFINED);
}

static noinline unsigned long zoo_stack_overflow(unsigned long depth)
{
	volatile char frame[512];

	frame[depth % sizeof(frame)] = depth;
	return zoo_stack_overflow(depth + 1) + frame[(depth + 1) % sizeof(frame)];
}

static noinline void zoo_stack_corruption(void)
{
	volatile char buffer[16];
	unsigned long i;

	for (i = 0; i < 64 + nothing; i++)
		buffer[i] = 'z';
}

static noinline void zoo_soft_lockup(void)
{
	unsigned long end = jiffies + seconds * HZ;

	preempt_disable();
	while (time_before(jiffies, end))
		cpu_relax();
	preempt_enable();
}

static struct rcu_head request;

static void fulfil(struct rcu_head *head)
{
}

/* The thread that begins the grace period we hold up needs this CPU, perhaps the only one. */
static noinline void zoo_rcu_stall(void)
{
	unsigned long end = jiffies + seconds * HZ;

	rcu_read_lock();
	call_rcu(&request, fulfil);
	while (time_before(jiffies, end))
		cond_resched();
	rcu_read_unlock();
}

static noinline void zoo_hung_task(void)
{
	schedule_timeout_uninterruptible(seconds * HZ);
	nothing = 0;
}

/* Never enabled again: the scheduler that complains sets the count right by itself. */
static noinline void zoo_atomic_sleep(void)
{
	preempt_disable();
	schedule_timeout_uninterruptible(1);
	nothing = 0;
}

static noinline void zoo_exhaust_memory(void)
{
	while (alloc_page(GFP_KERNEL))
		;
}

/* The breakpoint has no handler, nor has the fault of that, nor the double fault. */
static noinline void zoo_triple_fault(void)
{
#ifdef CONFIG_X86
	const struct {
		u16 limit;
		u64 base;
	} __packed empty = { 0, 0 };

	asm volatile("cli; lidt %0; int3" : : "m"(empty));
#endif
}

static void meet(const char *name, char __user *user)
{
	if (!strcmp(name, "null"))
		zoo_null();
	else if (!strcmp(name, "bad_address"))
		zoo_bad_address();
	else if (!strcmp(name, "non_canonical"))
		zoo_non_canonical();
	else if (!strcmp(name, "call_null"))
		zoo_call_null();
	else if (!strcmp(name, "bug"))
		zoo_bug();
	else if (!strcmp(name, "warn"))
		zoo_warn();
	else if (!strcmp(name, "warn_text"))
		zoo_warn_text();
	else if (!strcmp(name, "list"))
		zoo_list();
	else if (!strcmp(name, "refcount"))
		zoo_refcount();
	else if (!strcmp(name, "usercopy"))
		zoo_usercopy(user);
	else if (!strcmp(name, "divide"))
		zoo_divide();
	else if (!strcmp(name, "invalid_opcode"))
		zoo_invalid_opcode();
	else if (!strcmp(name, "stack_overflow"))
		zoo_stack_overflow(nothing);
	else if (!strcmp(name, "stack_corruption"))
		zoo_stack_corruption();
	else if (!strcmp(name, "soft_lockup"))
		zoo_soft_lockup();
	else if (!strcmp(name, "rcu_stall"))
		zoo_rcu_stall();
	else if (!strcmp(name, "hung_task"))
		zoo_hung_task();
	else if (!strcmp(name, "atomic_sleep"))
		zoo_atomic_sleep();
	else if (!strcmp(name, "exhaust_memory"))
		zoo_exhaust_memory();
	else if (!strcmp(name, "triple_fault"))
		zoo_triple_fault();
}

static ssize_t visit(struct file *file, const char __user *user, size_t size, loff_t *offset)
{
	char name[32] = {};

	if (size >= sizeof(name) || copy_from_user(name, user, size))
		return -EINVAL;
	meet(strim(name), (char __user *)user);
	return size;
}

static const struct proc_ops gate = { .proc_write = visit };

static int __init zoo_open(void)
{
	return proc_create("kboot_zoo", 0200, NULL, &gate) ? 0 : -ENOMEM;
}

static void __exit zoo_close(void)
{
	remove_proc_entry("kboot_zoo", NULL);
	rcu_barrier();
}

module_init(zoo_open);
module_exit(zoo_close);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Crashes on demand, to test crash detection with");
