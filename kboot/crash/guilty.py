"""Choose the function to look at first.

The innermost frame is rarely the guilty one: reporters print the report, instrumentation finds the
error, and helpers (locks, memcpy, lists, allocators) only do what their caller asked for. Each set
below names such functions; the first frame in none of the sets that apply is the guilty one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kboot.crash.model import CrashKind
from kboot.crash.stack import Entry, Section

K = CrashKind


def _names(*patterns: str) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(patterns) + ")$")


#: Whoever prints, unwinds, traps, or instruments.
REPORTERS = _names(
    r"_*dump_stack\w*|show_stack\w*|show_trace\w*|dump_backtrace\w*|unwind_backtrace|sched_show_task",
    r"stack_trace_\w+|save_stack\w*|arch_stack_walk|walk_stackframe|print_stack_trace|show_regs\w*",
    r"panic|vpanic|nmi_panic|__stack_chk_fail|__?warn\w*|warn_slowpath_\w+|report_bug|fixup_bug",
    r"die|die_\w+|__die\w*|oops_\w+|no_context|bad_area\w*|__bad_area\w*|do_(?:kern|user)_addr_fault",
    r"page_fault\w*|handle_page_fault|__do_page_fault|do_page_fault|async_page_fault|exc_\w+|asm_exc_\w+",
    r"do_error_trap|do_trap\w*|do_invalid_op|invalid_op|do_general_protection|general_protection|handle_bug",
    r"do_divide_error|divide_error|do_int3|int3|do_double_fault|double_fault|xen_\w*fault|ret_from_exception",
    r"error_entry|error_code|common_exception\w*|kernel_exc\w*|do_mem_abort|do_translation_fault",
    r"el[01]\w*_(?:sync|irq|da|dbg|undef|fpac|bti|inv|error|abort|64_sync_handler|abort_handler)\w*",
    r"do_bad_area|do_sp_pc_abort|do_undefinstr|do_debug_exception|brk_handler|bug_handler|call_break_hook",
    r"do_alignment_fault|do_DataAbort|__dabt_svc|__und_svc|__und_fault|do_undef\w*|do_el\w+|bad_el0_sync",
    r"arm64_serror_panic|do_serror|handle_exception|do_trap_break|ret_from_\w+|early_\w*fixup\w*",
    r"__kasan_\w+|kasan_\w+|__asan_\w+|asan_\w+|print_address_description\w*|print_report|print_error_desc\w*",
    r"check_memory_region\w*|check_region_inline|memory_is_(?:nonzero|poisoned)\w*|bytes_is_(?:nonzero|zero)",
    r"describe_(?:object|address)\w*|object_err|print_trailer|slab_err|slab_bug|slab_pad_check",
    r"check_bytes_and_report|check_object|on_freelist|free_debug_processing|alloc_debug_processing|init_object",
    r"check_slab|check_in_slab|fix_\w*slab\w*",
    r"kmsan_\w+|__msan_\w+|_*kcsan_\w+|__tsan_\w+|kfence_\w+|__kfence_\w+|print_kfence\w*|check_canary\w*",
    r"ubsan_\w+|__ubsan_\w+|val_to_string|handle_overflow|__sanitizer_\w+|write_comp_data|check_kcov_mode",
    r"instrument_\w+|__fortify_panic|fortify_panic|__fortify_report|__read_overflow\w*|__write_overflow\w*",
    r"debug_print_object|debug_object_\w+|__debug_object_\w+|debug_check_no_\w+|__debug_check_no_\w+",
    r"_*lockdep_\w+|print_\w*(?:bug|usage|deadlock|lock|inversion|circular|dependency|header|warning)\w*",
    r"___?might_\w+|__might_\w+|might_\w+|__cant_\w+|rcu_sleep_check|check_preemption_disabled|__this_cpu_\w+_check",
    r"debug_smp_processor_id|_*schedule_bug|_*schedule_debug|preempt_count_\w+",
    r"refcount_\w+|__refcount_\w+|_*list_(?:add|del|rcu)\w*_valid\w*|__list_\w+_or_report|check_data_corruption",
    r"usercopy_\w+|__check_object_size|check_(?:heap|page|stack|bogus)\w*_(?:object|span|address)",
    r"__check_heap_object|report_usercopy|skb_panic|skb_(?:over|under)_panic",
    r"bad_page\w*|bad_range|check_new_page\w*|free_pages_check\w*|free_page_is_bad|page_bad_reason|print_bad_pte",
    r"check_mm|dump_page|__dump_page|vm_bug\w*|dump_mm|dump_vma",
    r"do_exit|do_group_exit|make_task_dead|rewind_stack_\w+|mount_\w*root\w*|out_of_memory|oom_kill_process",
    r"stack_overflow\w*|handle_stack_overflow|handle_bad_stack|panic_bad_stack|sysrq_handle_crash\b(?!)",
    r"context_switch|finish_task_switch|ftrace_\w+|kprobe_ftrace_handler|trampoline_handler",
    r"unwind_\w+|__unwind_\w+|mark_lock\w*|mark_usage|mark_held_locks|validate_chain|check_\w*(?:deadlock|noncircular|prev_add\w*|prevs_add|irq_usage|usage|path|wait_context)",
    r"register_lock_class|assign_lock_key|add_lock_to_list|__check_\w*lock\w*|valid_state|valid_kaslr",
)

#: Locks and other things that wait, or order memory, on behalf of a caller.
LOCKS = _names(
    r"_*lock_(?:acquire|release|is_held|contended|acquired|downgrade|set_class|pin)\w*|lock_\w*irq\w*",
    r"_*(?:raw_)?(?:spin|read|write|seq)_(?:un|try)?lock\w*|_*raw_\w+_lock\w*|do_raw_\w+|_raw_\w+",
    r"(?:native_)?queued?_?\w*lock\w*|(?:pv_|__pv_|kvm_)\w*(?:lock|wait|kick)\w*|arch_\w*lock\w*|virt_spin_lock\w*",
    r"debug_spin\w*|debug_\w+_(?:lock|unlock)\w*|spin_(?:dump|bug)|rwlock_bug|mcs_spin\w*|osq_\w+",
    r"_*mutex_\w+|_*ww_mutex_\w+|rt_mutex_\w+|__rt_mutex_\w+|rtlock_\w+|rt_(?:spin|read|write)_\w+",
    r"_*down(?:_\w+)?|_*up(?:_read|_write)?|rwsem_\w+|__rwsem_\w+|call_rwsem_\w+|percpu_(?:down|up)_\w+|percpu_rwsem_\w+",
    r"_*rcu_read_(?:un)?lock\w*|rcu_lock_\w+|srcu_\w+|_*srcu_read_\w+|srcu_lock_\w+|rcu_dereference\w*",
    r"class_\w+_(?:con|de)structor|_*local_(?:bh|irq)_\w+|_*local_(?:un)?lock\w*|trace_hardirqs_\w+",
    r"_*bit_spin_\w+|seqcount_\w+|_*read_seq\w+|_*write_seq\w+|do_write_seq\w+|lockref_\w+|owner_on_cpu",
)

#: Helpers that touch what they are given.
HELPERS = _names(
    r"_*(?:mem|str|strn|strl|strs)(?:cpy|move|set|cmp|chr|len|cat|dup|ncmp|ncpy|nlen|str|casecmp|pbrk|spn|scan|rchr|chr_inv)\w*",
    r"_*memcpy\w*|_*memset\w*|_*memmove\w*|_*copy_(?:from|to|in)_user\w*|_*raw_copy_\w+|copy_user_\w+|copy_(?:to|from)_(?:iter|kernel)\w*",
    r"_copy_\w+|__copy_\w+|rep_movs\w*|rep_stos\w*|clear_(?:page|user)\w*|copy_page\w*|sized_strscpy|memcmp|bcmp|crc\w*_(?:le|be|generic)\w*|crc16",
    r"_*get_user\w*|_*put_user\w*|probe_kernel_\w+|copyin|copyout|iterate_and_advance\w*|__chk_\w+",
    r"_*(?:arch_|raw_|generic_)?atomic(?:64|_long)?_\w+|_*(?:arch_)?(?:test|set|clear|change)_(?:and_\w+_)?bit\w*|const(?:ant)?_test_bit|variable_test_bit|generic_\w*test_bit",
    r"_*read_once\w*|_*write_once\w*|__read_once_\w+|__write_once_\w+|(?:arch_)?(?:try_)?cmpxchg\w*|xchg\w*|_*find_\w*(?:bit)\w*|_*ffs\w*|fls\w*|_*hweight\w*",
    r"_*h?list_\w+|_*hlist_\w+|llist_\w+|INIT_LIST_HEAD|_*rb_\w+|rb_(?:next|prev|first|last|erase|insert\w*)|rcu_assign\w*",
    r"kref_\w+|refcount_\w+|kobject_(?:get|put)|get_device|put_device|(?:un)?likely|ERR_PTR|IS_ERR\w*|PTR_ERR",
    r"get_unaligned\w*|put_unaligned\w*|le\d+_to_\w+|be\d+_to_\w+|_*swab\w+|_*fswab\w+|ktime_\w+|div\w*_u?s?\d+",
    r"compound_head|_compound_head|page_to_\w+|virt_to_\w+|__phys_addr\w*|folio_flags|PageTail|PagePoisoned",
    r"(?:v|s|vs|sn|vsn|sc|vsc)n?printf\w*|string_nocheck|string|pointer|number|format_decode|v?printk\w*|_printk|vprintk_\w+|console_\w+|dev_vprintk\w*",
    r"arch_local_\w+|arch_irqs?_\w+|native_(?:save|restore|irq)\w*|seqprop_\w+|get_current|current_thread_info|cpu_relax|rep_nop|native_(?:pause|safe_halt)|__raw_(?:read|write)\w*|(?:read|write)[bwlq](?:_relaxed)?|io(?:read|write)\d+\w*|in[bwl]|out[bwl]",
)

#: Those who hand out and take back memory.
ALLOCATORS = _names(
    r"_*k?v?[mzc]alloc\w*|k[mz]alloc\w*|_*kmalloc\w*|kzalloc\w*|kcalloc\w*|_*krealloc\w*|_*kvmalloc\w*|kvzalloc\w*",
    r"_*kmem_cache_\w+|kmem_\w+|_*slab_\w+|_*slub_\w+|___slab_\w+|new_slab\w*|allocate_slab|get_partial\w*|cache_\w+|___cache_\w+|fallback_alloc",
    r"k?v?free\w*|kfree\w*|_*kfree\w*|kvfree\w*|_*vfree\w*|vunmap|_*vunmap\w*|_*vmalloc\w*|vzalloc\w*|_*cache_free|___cache_free|do_slab_free|set_freepointer|get_freepointer\w*|qlist_\w+|quarantine_\w+",
    r"(?:_*alloc|_*get|_*get_free|_*get_zeroed|_*free)_pages?\w*|get_page_from_freelist|prep_new_page|post_alloc_hook|rmqueue\w*|_*free_\w*pages?\w*|free_unref\w*|free_pcp\w*|put_page\w*|_*put_page\w*|release_pages|folio_alloc\w*|_*folio_put\w*|alloc_pages\w*|_*free_one_page",
    r"kstrdup\w*|kmemdup\w*|_*kmemdup\w*|kstrndup|kasprintf|kvasprintf\w*|memdup_user\w*|vmemdup_\w+|strndup_user|kmemleak_\w+|create_object|_*create_object|delete_object\w*|devm_k\w+|pcpu_alloc\w*|_*alloc_percpu\w*|free_percpu|mempool_\w+|kmalloc_array\w*|array_\w+|security_\w+_alloc|lsm_\w+_alloc|sock_kmalloc|sock_alloc_send_p?skb",
    r"_*alloc_skb\w*|_*netdev_alloc_skb\w*|_*napi_alloc_skb\w*|_*build_skb\w*|kmalloc_reserve|_*kfree_skb\w*|skb_(?:free|release|clone|copy|unshare)\w*|pskb_\w+|consume_skb|_*skb_\w*ext\w*|sk_skb_reason_drop|napi_consume_skb|poison_\w+|page_poison\w*|kernel_poison_pages|unpoison_\w+|check_poison\w*|_*radix_tree_\w+|xas_\w+|_*xa_\w+|idr_\w+|ida_\w+|mas_\w+|mt_\w+",
)

#: Those who put a task to sleep.
SLEEPERS = _names(
    r"_*schedule\w*|io_schedule\w*|preempt_schedule\w*|_*cond_resched\w*|wait_\w+|_*wait_\w+|do_wait_\w+|_*switch_to\w*|context_switch|swake_\w+|prepare_to_\w+",
    r"_*wait_for_\w+|do_wait_for_\w+|(?:un)?interruptible_\w+|bit_wait\w*|_*wait_on_\w+|out_of_line_wait\w*|folio_wait_\w+|_*lock_page\w*|_*folio_lock\w*|_*lock_buffer|msleep\w*|usleep_\w+|do_nanosleep|hrtimer_nanosleep|rpc_wait_\w+",
    r"_*flush_work\w*|flush_\w*work\w*|_*cancel_\w*work\w*|start_flush_work|touch_work_lockdep_map|synchronize_\w+|_*synchronize_\w+|rcu_barrier\w*|kthread_(?:stop|park)\w*|_*kthread_\w+_wait|_*synchronize_irq|del_timer_sync|timer_delete_sync|_*timer_delete_sync|try_to_del_timer\w*|refrigerator|_*refrigerator|__closure_sync\w*|closure_sync\w*|jbd2_log_wait_commit|cv_wait\w*|mutex_\w+|bit_wait_\w+|preempt_\w+|tasklet_\w+|drain_workqueue",
)

#: Interrupt, timer, and cross-CPU call machinery, seen when a stall is noticed from an interrupt.
INTERRUPTS = _names(
    r"nmi_\w+|arch_trigger_\w+|trigger_\w+|default_do_nmi|do_nmi|end_repeat_nmi|perf_event_nmi\w*|exc_nmi|asm_exc_nmi|_*perf_event_\w*overflow|x86_pmu_\w+|intel_pmu_\w+|watchdog_\w+|lockup_detector\w*",
    r"_*rcu_\w*(?:sched|stall|check|dump|pending|process)\w*|print_(?:cpu|other_cpu|cpu_)?_?stall\w*|check_cpu_stall|rcu_flavor_\w+|rcu_sched_clock_irq|rcu_dump_cpu_stacks|_*rcu_pending",
    r"update_process_times|tick_\w+|_*hrtimer_\w+|_*run_hrtimer\w*|_*run_timers?\w*|run_timer_\w+|timer_\w*interrupt|account_\w+|scheduler_tick|sched_tick|local_apic_timer\w*|\w*apic_timer\w*|smp_\w+|sysvec_\w+|asm_sysvec_\w+|_*sysvec_\w+|call_timer_fn|expire_timers",
    r"irq_exit\w*|_*irq_\w+|do_softirq\w*|_*do_softirq\w*|_*softirq\w*|handle_softirqs|invoke_softirq|handle_irq\w*|_*handle_irq\w*|handle_\w*irq\w*|generic_handle_\w+|do_IRQ|common_interrupt|asm_common_interrupt|_*common_interrupt|ret_from_intr|retint_\w+|entering_irq|gic_\w+|arch_timer_\w+|do_interrupt_handler|call_on_irq_stack|do_irq\w*|(?:arch_)?call_function_\w+|flush_smp_\w+|csd_\w+|_*flush_tlb_\w+|on_each_cpu\w*|native_flush_\w+|run_irq_\w+|run_ksoftirqd|generic_exec_single|kvm_\w+wait|delay_\w+|_*(?:const_)?_?[un]?delay|native_apic\w*|apic_\w+|kick_\w+",
    r"native_(?:safe_)?halt|default_idle\w*|mwait_\w+|arch_cpu_idle|cpuidle_\w+|acpi_(?:safe_halt|idle_\w+)|intel_idle\w*|do_idle|cpu_startup_entry|pv_native_safe_halt|cpu_do_idle|wfi|_*cpu_do_idle|poll_idle|raw_irqentry_\w+|irqentry_\w+|finish_lock_switch|raw_spin_rq\w*|task_rq_lock|write_ok_or_segv|text_poke\w*|_*text_poke\w*|stop_machine\w*|multi_cpu_stop|cpu_stopper_thread",
)

_SLEEPING = frozenset({K.HUNG_TASK, K.ATOMIC_SLEEP, K.INVALID_WAIT_CONTEXT, K.WORKQUEUE_LOCKUP})
_STALLED = frozenset({K.SOFT_LOCKUP, K.HARD_LOCKUP, K.RCU_STALL})
_ALLOCATIONS = frozenset(
    {K.KASAN, K.KFENCE, K.MEMORY_LEAK, K.SLAB_CORRUPTION, K.BAD_PAGE, K.ATOMIC_SLEEP, K.LOCK_HELD,
     K.ODEBUG, K.INVALID_WAIT_CONTEXT, K.DEADLOCK, K.USERCOPY, K.KMSAN, K.DATA_CORRUPTION, K.REFCOUNT,
     K.LOCK_MISUSE, K.SUSPICIOUS_RCU, K.BUG, K.HUNG_TASK, K.SOFT_LOCKUP, K.RCU_STALL, K.HARD_LOCKUP}
)  # fmt: skip


def _skipped(kind: CrashKind, function: str) -> bool:
    sets = [REPORTERS, LOCKS, HELPERS]
    if kind in _ALLOCATIONS:
        sets.append(ALLOCATORS)
    if kind in _SLEEPING:
        sets.append(SLEEPERS)
    if kind in _STALLED:
        sets.append(INTERRUPTS)
    return any(names.match(function) for names in sets)


def choose(
    kind: CrashKind, named: str | None, entries: Sequence[Entry], parts: Sequence[Section]
) -> str | None:
    """The guilty function, or None when the report names none at all.

    `named` is the function in the report's own first line or lock line, if it tells one.
    """
    if named is not None and not _skipped(kind, named):
        return named
    ordered = [entry for entry in _main(entries, parts) if entry.frame.reliable]
    if not ordered:
        ordered = list(entries)
    start = next((i for i, entry in enumerate(ordered) if entry.is_pc), 0)
    for entry in ordered[start:]:
        if not _skipped(kind, entry.frame.function):
            return entry.frame.function
    for entry in ordered[:start]:
        if not _skipped(kind, entry.frame.function):
            return entry.frame.function
    return named or (ordered[start].frame.function if ordered else None)


def _main(entries: Sequence[Entry], parts: Sequence[Section]) -> list[Entry]:
    """The frames of the stack that the report is about: not of who allocated or freed."""
    main = [part for part in parts if part.heading in ("", "trace", "backtrace", "Kernel panic")]
    return [e for e in entries if any(part.start <= e.position < part.end for part in main)]
