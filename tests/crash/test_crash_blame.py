"""Who is guilty: one test for each rule by which the function of a title is chosen."""

from __future__ import annotations

import pytest

from kboot.crash import CrashReport
from tests.crash.crash_logs import reports


def read(*lines: str) -> CrashReport:
    stamped = (f"[   42.{number:06}] {line}\n" for number, line in enumerate(lines))
    report, *_ = reports("".join(stamped).encode())
    return report


def frames(*functions: str) -> tuple[str, ...]:
    return tuple(f" {function}+0x1c/0x240" for function in functions)


WHO = "CPU: 1 PID: 77 Comm: tester Not tainted 6.1.0 #1"
TICK = ("__hrtimer_run_queues", "hrtimer_interrupt", "asm_sysvec_apic_timer_interrupt")
NOTICED = frames("dump_stack_lvl", "nmi_cpu_backtrace.cold", "rcu_dump_cpu_stacks", *TICK)
SYSTEM_CALL = ("do_syscall_64", "entry_SYSCALL_64_after_hwframe")
WORKER = ("process_one_work", "worker_thread", "kthread", "ret_from_fork")
STALL = "rcu: INFO: rcu_preempt self-detected stall on CPU"


def stall(pc: str, *functions: str) -> CrashReport:
    """A CPU stalls in the midst of `pc`, called by `functions`."""
    registers = f"RIP: 0010:{pc}+0x3/0x90"
    return read(
        STALL, WHO, "Call Trace:", " <IRQ>", *NOTICED, " </IRQ>", registers, *frames(*functions)
    )


def warning(*functions: str) -> CrashReport:
    first = f"WARNING: CPU: 1 PID: 77 at lib/tdev.c:12 {functions[0]}+0x1c/0x240"
    return read(
        first, WHO, f"RIP: 0010:{functions[0]}+0x1c/0x240", "Call Trace:", *frames(*functions[1:])
    )


def kasan(where: str, *functions: str, end: tuple[str, ...] = SYSTEM_CALL) -> CrashReport:
    return read(
        f"BUG: KASAN: use-after-free in {where}+0x1c/0x240",
        "Read of size 8 at addr ffff888012345678 by task tester/77",
        WHO,
        "Call Trace:",
        *frames("dump_stack_lvl", "print_report", "kasan_report", *functions, *end),
    )


@pytest.mark.parametrize(
    ("one", "other", "anchor"),
    [
        (("tdev_look", "tdev_run"), ("kfree", "tdev_drop", "tdev_run"), "tdev_run"),
        (
            (
                "read_hpet",
                "tdev_age",
                "tdev_tick",
                "call_timer_fn",
                "__run_timers",
                "run_timer_softirq",
            ),
            ("memcpy", "tdev_tick", "call_timer_fn", "__run_timers", "run_timer_softirq"),
            "tdev_tick",
        ),
    ],
    ids=["work", "timer"],
)
def test_two_stalls_of_one_work_or_timer_have_one_title(
    one: tuple[str, ...], other: tuple[str, ...], anchor: str
) -> None:
    titles = {stall(*one, *WORKER).title, stall(*other, *WORKER).title}
    assert titles == {f"RCU stall in {anchor}"}


@pytest.mark.parametrize(
    ("generic", "anchor"),
    [
        (("vfs_ioctl", "do_vfs_ioctl", "ksys_ioctl", "__x64_sys_ioctl"), "tdev_entry"),
        (("__x64_sys_ioctl",), "tdev_entry"),
        (("new_sync_write", "vfs_write", "ksys_write", "__x64_sys_write"), "tdev_entry"),
        (("proc_reg_write", "vfs_write", "ksys_write"), "tdev_entry"),
        (("sock_sendmsg", "____sys_sendmsg", "___sys_sendmsg", "__x64_sys_sendmsg"), "tdev_entry"),
        (
            (
                "genl_rcv_msg",
                "netlink_rcv_skb",
                "genl_rcv",
                "netlink_unicast",
                "netlink_sendmsg",
                "sock_sendmsg",
            ),
            "tdev_entry",
        ),
        (("__fput", "____fput", "task_work_run", "do_exit", "do_group_exit"), "tdev_entry"),
        (
            ("__netif_receive_skb_core", "process_backlog", "net_rx_action", "__do_softirq"),
            "tdev_entry",
        ),
        (("__x64_sys_tdev",), "sys_tdev"),
        (("irq_thread_fn", "irq_thread", "kthread", "ret_from_fork"), "tdev_entry"),
        (("cpuhp_invoke_callback", "cpuhp_thread_fun", "smpboot_thread_fn"), "tdev_entry"),
        (("__do_fault", "do_read_fault", "handle_mm_fault"), "tdev_entry"),
        (("__flush_smp_call_function_queue", "__sysvec_call_function_single"), "tdev_entry"),
        (("get_signal", "arch_do_signal_or_restart", "exit_to_user_mode_loop"), "tdev_entry"),
        (("handle_mm_fault", "do_user_addr_fault", "exc_page_fault"), "handle_mm_fault"),
    ],
)
def test_a_stall_is_named_by_the_first_function_below_the_generic_layers(
    generic: tuple[str, ...], anchor: str
) -> None:
    titles = {
        stall(*depth, "tdev_entry", *generic, *SYSTEM_CALL).title
        for depth in (("tdev_look", "tdev_walk"), ("_raw_spin_lock", "tdev_take"), ("tdev_walk",))
    }
    assert titles == {f"RCU stall in {anchor}"}


def test_what_a_stalled_cpu_printed_unwound_or_checked_is_not_its_stall() -> None:
    unwinding = ("unwind_next_frame", "arch_stack_walk", "stack_trace_save", "__kasan_kmalloc")
    printing = ("tdev_uart_putc", "console_unlock", "vprintk_emit", "_printk")
    for chance in (unwinding, printing):
        assert stall(*chance, "tdev_grow").function == "tdev_grow"


def test_a_cpu_that_waits_for_another_has_one_title_whichever_way_it_asks() -> None:
    for ask in ("smp_call_function_single", "smp_call_function_many_cond"):
        report = stall("__msan_get_context_state", ask, "on_each_cpu", "tdev_sync", *WORKER)
        assert report.title == "RCU stall in smp_call_function"


def test_a_cpu_that_was_asked_is_suspected_before_the_one_that_noticed() -> None:
    report = read(
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "CPU: 0 PID: 5 Comm: other Not tainted 6.1.0 #1",
        "Call Trace:",
        *NOTICED,
        *frames("tdev_innocent", *WORKER),
        "Sending NMI from CPU 0 to CPUs 1:",
        "NMI backtrace for cpu 1",
        WHO,
        "RIP: 0010:tdev_spin+0x3/0x90",
        "Call Trace:",
        *frames("tdev_work", *WORKER),
    )
    assert report.function == "tdev_work"


def test_a_task_that_blocks_the_grace_period_is_suspected_before_idle_cpus() -> None:
    report = read(
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: Tasks blocked on level-0 rcu_node (CPUs 0-1): P77",
        "NMI backtrace for cpu 1",
        "CPU: 1 PID: 0 Comm: swapper/1 Not tainted 6.1.0 #1",
        "RIP: 0010:native_safe_halt+0xb/0x10",
        "Call Trace:",
        *frames("default_idle", "do_idle", "cpu_startup_entry"),
        "task:tester  state:R  running task  stack:24880 pid:77 ppid:1 flags:0x00004000",
        "Call Trace:",
        *frames("__schedule", "preempt_schedule_irq", "asm_sysvec_apic_timer_interrupt"),
        "RIP: 0010:lock_acquire+0x3/0x90",
        *frames("tdev_scan", "tdev_ioctl", "__x64_sys_ioctl", *SYSTEM_CALL),
    )
    assert report.function == "tdev_ioctl"


def test_the_other_cpus_of_a_soft_lockup_are_not_suspected() -> None:
    report = read(
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [tester:77]",
        WHO,
        "RIP: 0010:tdev_spin+0x3/0x90",
        "Call Trace:",
        *frames("tdev_work", *WORKER),
        "Sending NMI from CPU 1 to CPUs 0:",
        "NMI backtrace for cpu 0",
        "CPU: 0 PID: 5 Comm: other Not tainted 6.1.0 #1",
        "RIP: 0010:tdev_innocent+0x3/0x90",
    )
    assert report.function == "tdev_work"


def overflow(*functions: str) -> CrashReport:
    lines = frames("dump_stack", "panic", "handle_bad_stack", "__bad_stack", *functions)
    return read("Kernel panic - not syncing: kernel stack overflow", WHO, "Call trace:", *lines)


def test_a_stack_is_used_up_by_whoever_calls_itself() -> None:
    deep = ("tdev_note", *["tdev_descend"] * 9, "tdev_ioctl", "__arm64_sys_ioctl")
    assert overflow(*deep).function == "tdev_descend"


def test_a_stack_that_many_have_used_up_is_named_like_a_stall() -> None:
    assert overflow("kmem_cache_alloc", "tdev_grow", "tdev_work", *WORKER).function == "tdev_work"


@pytest.mark.parametrize(
    "helper",
    [
        "usb_submit_urb",
        "__flush_work",
        "cancel_work_sync",
        "kobject_add_internal",
        "proc_register",
        "drop_nlink",
        "finish_wait",
        "wait_for_completion_timeout",
        "__mod_timer",
        "crc_itu_t",
        "hex_dump_to_buffer",
        "ref_tracker_dir_exit",
        "__alloc_frozen_pages_noprof",
        "warn_bogus_irq_restore",
        "lock_sock_nested",
        "assfail",
        "tdevfs_assert_failed",
        "rust_helper_BUG",
        "_RNvNtCsAB_4core9panicking9panic_fmt",
        "check_unmap",
        "debug_dma_assert_idle",
        "dma_map_page_attrs",
        "enable_irq",
        "clk_core_disable",
        "_regulator_put",
        "remove_proc_entry",
        "sysfs_remove_group",
        "module_put",
        "static_key_slow_dec_cpuslocked",
        "percpu_ref_kill_and_confirm",
        "check_flush_dependency",
        "hrtimer_active",
        "klist_put",
        "do_csum",
        "simple_copy_to_iter",
        "cache_from_obj",
        "debug_lockdep_rcu_enabled",
        "walk_stackframe",
    ],
)
def test_a_helper_is_not_blamed_for_its_caller(helper: str) -> None:
    assert warning(helper, "tdev_probe", *WORKER).title == "WARNING in tdev_probe"


@pytest.mark.parametrize(
    "waiter",
    [
        "synchronize_rcu_expedited",
        "__synchronize_srcu",
        "synchronize_net",
        "rcu_barrier",
        "kthread_stop",
        "percpu_ref_switch_to_atomic_sync",
        "blk_mq_freeze_queue_wait",
        "disable_irq",
    ],
)
def test_whoever_waits_on_behalf_of_a_caller_is_not_blamed(waiter: str) -> None:
    hung = read(
        "INFO: task tester:77 blocked for more than 122 seconds.",
        "task:tester          state:D stack:0     pid:77    ppid:1",
        "Call Trace:",
        *frames("__schedule", "schedule", "schedule_timeout", waiter, "tdev_close", *SYSTEM_CALL),
    )
    asleep = read(
        "BUG: sleeping function called from invalid context at kernel/x.c:12",
        WHO,
        "Call Trace:",
        *frames("dump_stack_lvl", "__might_resched", waiter, "tdev_close", *SYSTEM_CALL),
    )
    assert {hung.function, asleep.function} == {"tdev_close"}


def test_what_an_instrument_calls_is_not_blamed_for_its_caller() -> None:
    unwinder = ("stack_trace_consume_entry", "tdev_unwind", "arch_stack_walk", "kasan_save_stack")
    assert kasan("stack_trace_consume_entry", *unwinder, "tdev_queue").function == "tdev_queue"
    text = ("hex_string", "tdev_format", "pointer", "vsnprintf", "_dev_info")
    assert kasan("hex_string", *text, "tdev_show").function == "tdev_show"


def test_only_the_frames_of_the_interrupted_context_are_suspected() -> None:
    handlers = ("__do_kernel_fault", "tdev_arch_fault", "do_mem_abort", "el1_abort", "el1h_64_sync")
    report = kasan("__memset", *handlers, "__memset", "tdev_clear", "tdev_open")
    assert report.function == "tdev_clear"


def test_a_report_in_an_interrupt_is_not_of_the_task_below_it() -> None:
    report = read(
        "INFO: trying to register non-static key.",
        WHO,
        "Call Trace:",
        " <IRQ>",
        *frames("dump_stack", "register_lock_class", "__lock_acquire", "lock_acquire"),
        *frames("_raw_spin_lock_irqsave", "complete", "tdev_received", "tdev_irq"),
        *frames("asm_common_interrupt"),
        " </IRQ>",
        "RIP: 0010:tdev_innocent+0x3/0x90",
    )
    assert report.function == "tdev_received"


def test_a_null_that_a_release_is_given_is_its_callers() -> None:
    report = read(
        "BUG: kernel NULL pointer dereference, address: 000000000000001c",
        WHO,
        "RIP: 0010:iput+0x9/0x200",
        "Call Trace:",
        *frames("tdev_forget", *SYSTEM_CALL),
    )
    assert report.function == "tdev_forget"


def circle(wanted_at: str, *taker: str, chain: tuple[str, ...] = ()) -> CrashReport:
    lock = "ffff88803d3d5d28 ((wq_completion)tdev){+.+.}-{0:0}"
    return read(
        "WARNING: possible circular locking dependency detected",
        "tester/77 is trying to acquire lock:",
        f"{lock}, at: {wanted_at}+0x1c/0x240",
        "the existing dependency chain (in reverse order) is:",
        "-> #1 (&tdev->lock){+.+.}-{3:3}:",
        *frames("lock_acquire", *chain),
        "stack backtrace:",
        WHO,
        "Call Trace:",
        *frames("dump_stack_lvl", "print_circular_bug", "__lock_acquire", "lock_acquire", *taker),
    )


def test_a_circle_is_closed_by_the_caller_of_a_helper() -> None:
    report = circle("__flush_workqueue", "__flush_workqueue", "tdev_stop", *SYSTEM_CALL)
    assert report.title == "possible deadlock in tdev_stop"


def test_a_circle_closed_by_machinery_is_named_by_its_chain() -> None:
    report = circle("process_one_work", *WORKER, chain=("__flush_workqueue", "tdev_stop"))
    assert report.title == "possible deadlock in tdev_stop"


def test_an_order_of_locks_that_an_interrupt_breaks_is_named_by_the_interrupt() -> None:
    report = read(
        "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
        "tester/77 [HC0[0]:SC0[0]:HE0:SE1] is trying to acquire:",
        "ffff888026df22b8 (&tdev->list_lock){.+.+}-{2:2}, at: tdev_append+0x14b/0x460",
        "but this new dependency connects a HARDIRQ-irq-safe lock:",
        " (&tdev->lock){-...}-{2:2}",
        "... which became HARDIRQ-irq-safe at:",
        *frames("lock_acquire", "_raw_spin_lock_irqsave", "tdev_irq", "__handle_irq_event_percpu"),
        "to a HARDIRQ-irq-unsafe lock:",
        "stack backtrace:",
        WHO,
        "Call Trace:",
        *frames("dump_stack_lvl", "lock_acquire", "_raw_read_lock", "tdev_append"),
    )
    assert report.function == "tdev_irq"


def test_a_nested_lock_is_its_takers() -> None:
    report = read(
        "WARNING: Nested lock was not taken",
        "tester/77 is trying to lock:",
        "ffff0000c495a9d8 (&tdev->list_lock){+.+.}-{2:2}, at: tdev_drop+0x9c/0x360",
        WHO,
        "Call trace:",
        *frames("dump_stack", "lock_acquire", "tdev_other"),
    )
    assert report.function == "tdev_drop"


def test_a_race_on_a_lock_is_the_locks() -> None:
    report = read(
        "BUG: KCSAN: data-race in mutex_spin_on_owner+0x51/0xd0",
        "race at unknown origin, with read to 0xffff888101234567 of 4 bytes by task 77 on cpu 1:",
        *frames("mutex_spin_on_owner", "__mutex_lock", "tdev_ioctl"),
    )
    assert report.title == "KCSAN: data-race in mutex_spin_on_owner"


@pytest.mark.parametrize(
    "line",
    [
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/1:0:77]",
        "BUG: scheduling while atomic: kworker/1:0/77/0x00000002",
        "BUG: workqueue leaked lock or atomic: kworker/1:0/0x00000000/77",
        "BUG: workqueue leaked atomic, lock or RCU: kworker/1:0/0x00000000/77",
    ],
)
def test_task_and_pid_stand_in_the_first_line(line: str) -> None:
    report = read(line)
    assert (report.task, report.pid) == ("kworker/1:0", 77)


def test_a_workqueue_names_its_busy_function_in_words() -> None:
    lockup = read(
        "BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 34s!",
        "Showing busy workqueues and worker pools:",
        "workqueue events: flags=0x0",
        "  pwq 2: cpus=1 node=0 flags=0x0 nice=0 active=2/256 refcnt=3",
        "    in-flight: 77:tdev_poll_work",
        "    pending: vmstat_shepherd, cache_reap",
    )
    assert lockup.title == "workqueue lockup in tdev_poll_work"
    leak = read(
        "BUG: workqueue leaked lock or atomic: kworker/1:0/0x00000000/77",
        "     last function: tdev_poll_work",
    )
    assert leak.title == "workqueue leaked lock in tdev_poll_work"


@pytest.mark.parametrize(
    "interrupt",
    [
        ("arch_timer_handler_virt", "handle_percpu_devid_irq", "gic_handle_irq", "el1h_64_irq"),
        (
            "riscv_timer_interrupt",
            "handle_percpu_devid_irq",
            "riscv_intc_irq",
            "ret_from_exception",
        ),
        ("timer_interrupt", "decrementer_common_virt"),
        ("clock_comparator_interrupt", "do_ext_irq", "ext_int_handler"),
        ("twd_handler", "handle_percpu_devid_irq", "gic_handle_irq", "__irq_svc"),
        ("c0_compare_interrupt", "handle_percpu_irq", "plat_irq_dispatch"),
    ],
    ids=["arm64", "riscv", "powerpc", "s390", "arm", "mips"],
)
def test_an_architectures_interrupt_is_not_what_it_interrupted(interrupt: tuple[str, ...]) -> None:
    noticed = ("sched_show_task", "dump_cpu_task", "rcu_dump_cpu_stacks", "rcu_sched_clock_irq")
    tick = ("update_process_times", "tick_sched_timer", "__hrtimer_run_queues", "hrtimer_interrupt")
    lines = frames(*noticed, *tick, *interrupt, "memcpy", "tdev_spin", "tdev_thread")
    assert read(STALL, "Call Trace:", *lines).function == "tdev_spin"


def test_a_bad_page_is_its_allocators() -> None:
    report = read(
        "BUG: Bad page state in process tester  pfn:ab652",
        "page last allocated via order 0, migratetype Unmovable, gfp_mask 0x2820, pid 77",
        *frames("__set_page_owner", "post_alloc_hook", "__alloc_pages_noprof", "tdev_grow"),
        "page last free pid 5 tgid 5 stack trace:",
        *frames("__reset_page_owner", "tdev_innocent"),
        WHO,
        "Call Trace:",
        *frames("dump_stack_lvl", "bad_page", "free_unref_page", "tdev_drop"),
    )
    assert report.function == "tdev_grow"


def test_a_wait_for_a_virtual_lock_is_blamed_for_its_own_warning() -> None:
    assert warning("warn_bogus_irq_restore", "kvm_wait", "tdev_probe").function == "kvm_wait"


def test_a_watchdogs_panic_has_the_function_of_its_lockup() -> None:
    report = read(
        "Kernel panic - not syncing: softlockup: hung tasks",
        WHO,
        "Call Trace:",
        " <IRQ>",
        *frames("dump_stack", "panic", "watchdog_timer_fn.cold", *TICK),
        " </IRQ>",
        "RIP: 0010:tdev_look+0x3/0x90",
        *frames("tdev_work", *WORKER),
    )
    assert (report.title, report.function) == ("panic: softlockup: hung tasks", "tdev_work")


def test_a_failure_that_was_injected_is_not_the_injectors() -> None:
    report = read(
        "WARNING: suspicious RCU usage",
        WHO,
        "Call Trace:",
        *frames("dump_stack", "should_fail.cold.4", "__should_failslab", "kfree", "tdev_grow"),
    )
    assert report.function == "tdev_grow"


def test_an_entry_of_the_kernel_is_never_guilty() -> None:
    report = read(
        "WARNING: kernel stack regs at 00000000abcd1234 in tester:77 has bad 'bp' value",
        "Call Trace:",
        *frames("dump_stack", *SYSTEM_CALL),
    )
    assert report.function is None


def _inlined(*functions: str) -> tuple[str, ...]:
    return tuple(f" {function} drivers/misc/tdev.c:12 [inline]" for function in functions)


def test_a_symbolised_log_has_the_title_of_the_log_as_it_was() -> None:
    first = "BUG: KASAN: use-after-free in "
    access = "Read of size 8 at addr ffff888012345678 by task tester/77"
    begin = (access, WHO, "Call Trace:")
    outer = (*frames("kasan_report", "tdev_read", "tdev_ioctl"),)
    plain = read(f"{first}tdev_read+0x1c/0x240", *begin, *outer)
    inner = _inlined("tdev_state", "tdev_lookup")
    symbolised = read(
        *(f"{first}{name.strip()}" for name in inner),
        f"{first}tdev_read+0x1c/0x240 drivers/misc/tdev.c:22",
        *begin,
        *outer[:1],
        *inner,
        *outer[1:],
    )
    assert symbolised.title == plain.title == "KASAN: use-after-free read in tdev_read"
    assert "tdev_state" in {frame.function for frame in symbolised.frames}


def test_registers_of_a_symbolised_log_name_the_whole_function() -> None:
    oops = read(
        "BUG: kernel NULL pointer dereference, address: 0000000000000048",
        "Oops: 0000 [#1] SMP",
        WHO,
        "RIP: 0010:tdev_state drivers/misc/tdev.c:12 [inline]",
        "RIP: 0010:tdev_read+0x1c/0x240 drivers/misc/tdev.c:22",
        "Call Trace:",
        *frames("tdev_ioctl"),
    )
    assert oops.title == "NULL pointer dereference in tdev_read"


def test_an_inlined_function_is_named_where_nothing_else_is() -> None:
    report = read("BUG: KASAN: use-after-free in tdev_state drivers/misc/tdev.c:12 [inline]")
    assert report.function == "tdev_state"


def test_a_stack_of_guesses_is_read_without_those_who_only_wait_and_wake() -> None:
    guesses = ("io_schedule", "cv_wait_common", "wake_up_atomic_t", "tdev_sync", "tdev_work")
    hung = read(
        "INFO: task tester:77 blocked for more than 120 seconds.",
        "tester        D 0000000000000004     0    77      2 0x00000000",
        "Call Trace:",
        *(f" [<ffffffff813a3aee>] ?{frame}" for frame in frames(*guesses)),
    )
    assert hung.function == "tdev_sync"


def test_the_driver_core_works_for_drivers() -> None:
    chain = ("sysfs_remove_group", "dpm_sysfs_remove", "device_del", "device_unregister")
    assert warning(*chain, "i2c_unregister_device", "i2c_del_adapter", "tdev_exit").function == (
        "tdev_exit"
    )
    entry = warning("sysfs_remove_group", "x64_sys_call", *SYSTEM_CALL)
    assert entry.function == "sysfs_remove_group"


@pytest.mark.parametrize(
    "helper", ["arm_copy_from_user", "__copy_tofrom_user", "__bzero", "NG4memcpy", "bitmap_weight"]
)
def test_every_architectures_copies_work_for_their_caller(helper: str) -> None:
    assert warning(helper, "tdev_read").function == "tdev_read"
    assert warning("bitmap_ip_add", "tdev_read").function == "bitmap_ip_add"


def test_lockdeps_function_is_read_in_a_decoded_log_too() -> None:
    report = read(
        "WARNING: possible recursive locking detected",
        "tester/77 is trying to acquire lock:",
        "ffff888005f9c130 (k-lock){+.+.}-{0:0}, at: tdev_close (/home/u/linux/net/tdev.c:3033)",
        "",
        "but task is already holding lock:",
        "ffff888006c68130 (k-lock){+.+.}-{0:0}, at: tdev_listen (/home/u/linux/net/tdev.c:1017)",
        "stack backtrace:",
        WHO,
        "Call Trace:",
        "lock_acquire (/home/u/linux/kernel/locking/lockdep.c:5668)",
        "tdev_other (/home/u/linux/net/tdev.c:3033)",
    )
    assert report.function == "tdev_close"


def test_a_workers_stall_between_two_pieces_of_work_is_the_works() -> None:
    report = read(
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-... } 6 jiffies",
        "Task dump for CPU 0:",
        "task:kworker/u4:4    state:R  running task     stack:    0 pid:   77 ppid:     2",
        "Workqueue: events_unbound tdev_work [tdev]",
        "Call Trace:",
        *frames("__schedule", "__cond_resched", *WORKER),
    )
    assert report.title == "RCU stall in tdev_work"


def test_a_stall_that_shows_nothing_but_its_detection_names_nobody() -> None:
    detection = ("sched_show_task", "rcu_check_callbacks.cold", "xen_timer_interrupt")
    report = read(STALL, WHO, "Call Trace:", *frames(*detection, "xen_evtchn_do_upcall"))
    assert report.title == "RCU stall"


def test_a_fault_in_freeing_a_packet_is_the_packets() -> None:
    chain = frames("skb_release_data", "skb_release_all", "__kfree_skb", "tdev_receive")
    fault = read(
        "general protection fault, maybe for address 0x0: 0000 [#1] SMP",
        WHO,
        f"RIP: 0010:{chain[0].strip()}",
        "Call Trace:",
        *chain[1:],
    )
    assert fault.function == "skb_release_data"
    page = read("BUG: Bad page state in process tester  pfn:12345", WHO, "Call Trace:", *chain)
    assert page.function == "tdev_receive"


@pytest.mark.parametrize(
    "function",
    [
        *("cfi_amdstd_erase_chip", "check_lock_range", "copy_page_range", "page_to_skb"),
        *("copy_to_user_tmpl", "__put_user_ns", "strset_prepare_data", "clear_page_dirty_for_io"),
        *("destroy_super_work", "drain_vmap_area_work", "console_callback", "list_add_event"),
        *("find_first_extent_bit", "rb_insert_bss", "dma_free_tx_skbufs", "kvm_steal_clock"),
    ],
)
def test_a_function_that_only_sounds_like_a_helper_is_named(function: str) -> None:
    assert warning(function, "tdev_read").function == function


@pytest.mark.parametrize(
    "function",
    ["kvm_vcpu_block", "delay_map", "watchdog_write", "smp_execute_task_sg", "kick_pool"],
)
def test_a_function_that_only_sounds_like_an_interrupt_is_named_in_a_stall(function: str) -> None:
    assert stall(function, "tdev_thread", "kthread").title == "RCU stall in tdev_thread"
    assert stall("_raw_spin_lock", function, "process_one_work").function == function


def test_what_traces_a_function_is_not_it() -> None:
    for tracer in ("ftrace_caller", "return_to_handler", "arch_rethook_trampoline"):
        assert warning(tracer, "tdev_read").function == "tdev_read"


@pytest.mark.parametrize(
    "function", ["reacquire_held_locks", "match_held_lock", "ksize", "__hwasan_tag_memory"]
)
def test_what_lockdep_and_the_allocators_do_for_a_caller_is_the_callers(function: str) -> None:
    assert warning(function, "tdev_read").function == "tdev_read"


@pytest.mark.parametrize(
    "function", ["xfs_assert_ilocked", "assert_plane", "netdev_warn", "f2fs_printk", "drm_err"]
)
def test_assertions_and_printing_are_their_callers(function: str) -> None:
    assert warning(function, "tdev_read").function == "tdev_read"


@pytest.mark.parametrize("function", ["dlm_assert_master_handler", "mhi_assert_dev_wake"])
def test_a_function_that_only_sounds_like_an_assertion_is_named(function: str) -> None:
    assert warning(function, "tdev_read").function == function
