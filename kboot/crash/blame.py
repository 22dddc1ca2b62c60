"""Choose the function to look at first: not one of those that only report, or only pass on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from kboot.crash.model import CrashKind
from kboot.crash.stack import Entry, sections


def _names(*patterns: str) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(patterns) + ")$")


#: Whoever prints, traps, checks or instruments.
REPORTERS = _names(
    # Printing.
    r"_*dump_stack\w*|show_stack\w*|show_trace\w*|dump_backtrace\w*|unwind_backtrace|sched_show_task",
    r"stack_trace_\w+|save_stack\w*|arch_stack_walk|print_stack_trace|show_regs\w*|dump_page|dump_mm",
    r"panic|vpanic|nmi_panic|__stack_chk_fail|warn|__?warn_\w+|warn_slowpath_\w+|__warn|warn_alloc\w*",
    r"print_\w*(?:bug|usage|deadlock|inversion|circular|dependency|header|warning|report|context)\w*",
    r"print_(?:address_\w+|error_\w+|trailer|bad_pte|unlock\w*|lock\w*)|describe_(?:object|address)\w*",
    # Exceptions, from the entry to die().
    r"report_bug|fixup_bug|handle_bug|die|die_\w+|__die\w*|oops_\w+|no_context|_*bad_area\w*",
    r"do_(?:kern|user)_addr_fault|_*do_page_fault|page_fault|page_fault_oops|async_page_fault",
    r"handle_page_fault|kernelmode_fixup_or_oops|do_error_trap|do_trap|do_trap_no_signal|do_invalid_op|invalid_op|error_entry",
    r"(?:do_)?(?:general_protection|divide_error|int3|double_fault|stack_segment)|error_code|exc_\w+",
    r"asm_exc_\w+|common_exception\w*|do_mem_abort|do_translation_fault|do_bad_area|do_sp_pc_abort",
    r"el[01]\w*_(?:sync|irq|da|dbg|undef|fpac|bti|inv|error|abort|handler|interrupt)\w*|bad_mode|bad_el0_sync",
    r"_*do_kernel_fault|die_kernel_fault|do_undefinstr|do_debug_exception|brk_handler|bug_handler",
    r"call_break_hook|do_alignment_fault|do_DataAbort|do_PrefetchAbort|__dabt_svc|__und_svc\w*",
    r"do_undef\w*|do_el\w+|arm64_serror_panic|do_serror|handle_exception|do_trap_\w+|ret_from_exception",
    r"panic_bad_stack|handle_stack_overflow|handle_bad_stack|excp_\w+|xen_\w*fault",
    # Sanitizers and hardening.
    r"_*kasan_\w+|_*asan_\w+|check_memory_region\w*|check_region_inline|memory_is_\w+|bytes_is_\w+",
    r"object_err|slab_err|slab_bug|slab_pad_check|check_bytes_and_report|check_object|on_freelist",
    r"free_debug_processing|free_to_partial_list|alloc_debug_processing|init_object|check_slab",
    r"_*kmsan_\w+|__msan_\w+|_*kcsan_\w+|__tsan_\w+|_*kfence_\w+|check_canary\w*|_*ubsan_\w+",
    r"val_to_string|handle_overflow|_*sanitizer_\w+|write_comp_data|check_kcov_mode|instrument_\w+",
    r"_*fortify_\w+|__(?:read|write)_overflow\w*|_*usercopy_\w+|report_usercopy|_*check_object_size",
    r"_*check_heap_object|check_(?:page_span|stack_object|bogus_address|kernel_text_object)",
    r"debug_print_object|_*debug_object_\w+|_*debug_check_no_\w+|lookup_object_or_alloc",
    r"refcount_\w+|__refcount_\w+|_*list_(?:add|del)\w*_valid\w*|__list_\w+_or_report",
    r"check_data_corruption|skb_panic|skb_(?:over|under)_panic|skb_(?:put|push|pull)\w*",
    # Lockdep and the "might sleep" family.
    r"_*lockdep_\w+|mark_lock\w*|mark_usage|mark_held_locks|validate_chain|valid_state|check_usage\w*",
    r"check_(?:deadlock|noncircular|prev_add|prevs_add|irq_usage|path|wait_context)\w*|check_lock\w*",
    r"register_lock_class|assign_lock_key|add_lock_to_list|look_up_lock_class|_*bfs|check_flags",
    r"___?might_\w+|might_\w+|_*cant_\w+|check_preemption_disabled|_*this_cpu_\w+_check",
    r"debug_smp_processor_id|_*schedule_bug|schedule_debug|preempt_count_\w+|rcu_sleep_check",
    # Page allocator checks.
    r"bad_page\w*|bad_range|check_new_page\w*|free_pages?_(?:check|prepare|is_bad)\w*|page_bad_reason",
    r"check_mm|vm_bug\w*|_*dump_page",
)

#: Locks, and what orders memory on behalf of a caller.
LOCKS = _names(
    r"_*lock_(?:acquire|release|is_held|contended|acquired|downgrade|set_class|pin)\w*",
    r"_*(?:raw_)?(?:spin|read|write)_(?:un|try)?lock\w*|_*do_raw_\w+|_raw_\w+|_*raw_callee_\w+",
    r"(?:native_)?queued_\w*lock\w*|(?:native_)?queued_\w+_slowpath|_*(?:pv|kvm|xen)_\w*(?:lock|wait)\w*",
    r"arch_(?:spin|read|write)\w*lock\w*|virt_spin_lock\w*|debug_(?:spin|rw|read|write|mutex)\w*lock\w*",
    r"debug_(?:spin|mutex|rt_mutex)\w*|spin_(?:dump|bug)|rwlock_bug|mcs_\w*|osq_\w+|ticket_\w*lock\w*",
    r"_*mutex_\w+|_*ww_mutex_\w+|_*rt_mutex_\w+|rtlock_\w+|rt_(?:spin|read|write)_\w+|_*rt_mutex",
    r"_*down(?:_read|_write|_interruptible|_killable|_trylock|_timeout|_common)?(?:_\w+)?",
    r"_*up(?:_read|_write)?|_*rwsem_\w+|call_rwsem_\w+|_*percpu_(?:down|up)_\w+|_*percpu_rwsem_\w+",
    r"_*rcu_read_(?:un)?lock\w*|rcu_lock_\w+|_*srcu_read_\w+|srcu_lock_\w+|rcu_dereference\w*",
    r"class_\w+_(?:con|de)structor|_*local_(?:bh|irq)_\w+|_*local_(?:un)?lock\w*|trace_hardirqs_\w+",
    r"_*bit_spin_\w+|seqcount_\w+|_*fs_reclaim_\w+|_*read_seq\w+|_*write_seq\w+|do_write_seq\w+|lockref_\w+",
)

#: Helpers that touch what they are given.
HELPERS = _names(
    r"_*(?:mem|str|strn|strl|strs)(?:cpy|move|set|cmp|chr|len|cat|ncmp|ncpy|nlen|str|casecmp|scan)\w*",
    r"_*mem(?:cpy|set|move)_\w+|_*str(?:pbrk|spn|rchr|nchr|scpy|ncasecmp|dup)\w*|sized_strscpy|bcmp",
    r"_*(?:raw_)?copy_(?:from|to|in)_(?:user|iter|kernel)\w*|_*copy_user_\w+|_*copy_(?:from|to)_iter\w*",
    r"rep_movs\w*|rep_stos\w*|clear_(?:page|user)\w*|copy_page\w*|copyin|copyout|iterate_and_\w+",
    r"_*get_user(?!_pages)\w*|_*put_user\w*|probe_kernel_\w+|crc16|crc32\w*_(?:le|be)\w*|crc32c\w*|__crc32\w*",
    r"_*(?:arch_|raw_|generic_)*atomic(?:64|_long)?_\w+|variable_test_bit|const(?:ant)?_test_bit",
    r"_*(?:arch_|generic_)?_*(?:test|set|clear|change|assign)_(?:and_\w+_)?bit\w*|_*read_once\w*",
    r"_*write_once\w*|(?:arch_)?(?:try_)?cmpxchg\w*|_*xchg\w*|_*find_\w*bit\w*|_*ffs|_*fls\w*|_*hweight\w*",
    r"_*h?list_(?:add|del|move|splice|empty|replace|first|last|next|is|bl|entry|rcu|unhashed)\w*",
    r"INIT_(?:H?LIST_HEAD\w*)|hlist_\w+|llist_\w+|_*rb_(?:next|prev|first|last|erase|insert|rotate)\w*",
    r"kref_\w+|kobject_(?:get|put)|get_device|put_device|ERR_PTR|IS_ERR\w*|PTR_ERR|rcu_assign\w*",
    r"get_unaligned\w*|put_unaligned\w*|_*[lb]e\d+_to_cpup?|_*swab\w+|_*fswab\w+|div\w*_u?s?\d+",
    r"_*compound_head|page_to_\w+|virt_to_\w+|_*phys_addr\w*|folio_flags\w*|Page[A-Z]\w+|page_ref_\w+",
    r"(?:v|s|vs|sn|vsn|sc|vsc)n?printf|string|string_nocheck|pointer|number|format_decode|_*v?printk\w*",
    r"vprintk_\w+|console_\w+|dev_vprintk\w*|arch_local_\w+|arch_irqs?_\w+|native_(?:save|restore)_fl",
    r"\w*(?:return|indirect)_thunk\w*|clear_bhb_loop|page_fixed_fake_head|csum_partial\w*",
    # arm64's out-of-line atomics, position-independent string functions and user copies.
    r"__ll_sc_\w+|__lse_\w+|__aarch64_\w+|__pi_\w+|_*arch_(?:copy|clear)_\w+|__cmpwait_\w+",
    r"seqprop_\w+|get_current|current_thread_info|cpu_relax|rep_nop|native_pause|_*raw_(?:read|write)\w*",
    r"(?:read|write)[bwlq](?:_relaxed)?|io(?:read|write)\d+\w*|(?:in|out)[bwl]|__preempt_\w+",
)

#: Those who hand out and take back memory.
ALLOCATORS = _names(
    r"_*k[vmz]*alloc\w*|_*kcalloc\w*|_*kvcalloc\w*|_*krealloc\w*|_*kmem_\w+|_*k[vz]*free\w*|_*v[mz]?alloc\w*",
    r"_*vfree\w*|_*vunmap\w*|vzalloc\w*|_*do_kmalloc\w*|_*slab_\w+|_*slub_\w+|new_slab\w*|allocate_slab",
    r"discard_slab|free_slab|get_partial\w*|_*cache_(?:alloc|grow|free|flusharray|init)\w*",
    r"fallback_alloc|do_slab_free|memcg_slab_\w+|[gs]et_freepointer\w*|qlist_\w+|quarantine_\w+",
    r"_*(?:alloc|get|get_free|get_zeroed|free)_pages?(?:_\w+)?|get_page_from_freelist|prep_new_page",
    r"post_alloc_hook|rmqueue\w*|_*free_(?:unref|one|pcp|hot_cold|the|compound|frozen|tail|large|huge)\w*|_*put_(?:single_|compound_)?page\w*",
    r"release_pages|destroy_(?:large_folio|compound_page)|folio_alloc\w*|_*folio_put\w*|folios_put\w*|_*poison_\w+|page_poison\w*|check_poison\w*",
    r"_*kstr(?:n)?dup\w*|_*kmemdup\w*|kasprintf|kvasprintf\w*|v?memdup_\w+|strndup_user|_*kmemleak_\w+",
    r"_*create_object|delete_object\w*|devm_k\w+|pcpu_alloc\w*|_*alloc_percpu\w*|free_percpu|mempool_\w+",
    r"_*alloc_skb\w*|_*netdev_alloc_\w+|_*napi_alloc_\w+|_*build_skb\w*|kmalloc_reserve|_*kfree_skb\w*",
    r"skb_(?:free|release)\w*|consume_skb|sk_skb_reason_drop|napi_consume_skb|_*rcu_free_\w+|alloc_buffer",
)

#: Those who allocate for a caller's data structure: only a leak is their caller's doing.
CONTAINERS = _names(
    r"_*radix_tree_\w+|xas_\w+|_*xa_\w+|_*idr_\w+|_*ida_\w+|mas_\w+|mt_\w+|mtree_\w+|array_\w+_alloc",
    r"skb_(?:clone|copy|unshare|alloc)\w*|pskb_\w+|sock_(?:kmalloc|alloc_send_\w+|wmalloc)|security_\w+",
    r"lsm_\w+|ext_alloc|_*alloc_workqueue|krealloc_\w+|bpf_map_\w*alloc\w*|alloc_inode|kobject_set_\w+",
)

#: Those who put a task to sleep.
SLEEPERS = _names(
    r"_*schedule\w*|io_schedule\w*|preempt_schedule\w*|_*cond_resched\w*|_*switch_to\w*|context_switch",
    r"_*wait_for_(?:common|completion)\w*|do_wait_for_common|_*wait_on_(?:bit|page|buffer)\w*|wait_woken",
    r"bit_wait\w*|out_of_line_wait\w*|folio_wait_\w+|_*lock_page\w*|_*folio_lock\w*|_*lock_buffer",
    # SPL's condition variables, on which ZFS sleeps.
    r"_*cv_(?:timed)?wait\w*",
    r"sleep_on_page\w*|inode_wait|blk_io_schedule|_*wait_rcu_gp",
    r"msleep\w*|usleep_\w+|do_nanosleep|hrtimer_nanosleep|swait_\w+|prepare_to_\w+|finish_task_switch",
)

#: Interrupt, timer and cross-CPU machinery, in whose midst a stall is noticed.
INTERRUPTS = _names(
    r"nmi_\w+|arch_trigger_\w+|trigger_\w+|default_do_nmi|do_nmi|end_repeat_nmi|perf_event_nmi\w*",
    r"_*perf_event_\w*overflow|x86_pmu_\w+|intel_pmu_\w+|watchdog_\w+|lockup_detector\w*|first_nmi",
    r"print_(?:cpu|other_cpu)_?stall\w*|check_cpu_stall\w*|rcu_(?:sched_clock|check_|dump_|pending)\w*",
    r"_*rcu_pending|update_process_times|tick_\w+|_*hrtimer_\w+|_*run_hrtimer\w*|_*run_timers?\w*",
    r"timer_\w*interrupt|account_\w+|sched_tick|scheduler_tick|local_apic_timer\w*|\w*apic_timer\w*",
    r"smp_(?!call_function)\w+|\w*sysvec_\w+|call_timer_fn|expire_timers|irq_exit\w*|_*irq_(?:enter|exit|work|finalize|forced)\w*|_*do_softirq\w*|_*softirq\w*",
    r"handle_softirqs|invoke_softirq|_*handle_\w*irq\w*|generic_handle_\w+|do_IRQ|\w*common_interrupt",
    r"lapic_next_\w+|clockevents_program_\w+|touch_\w*watchdog\w*|rcu_momentary_\w+",
    r"ret_from_intr|retint_\w+|gic_\w+|arch_timer_\w+|do_interrupt_handler|call_on_irq_stack|do_irq\w*",
    r"(?:arch_)?call_function_\w+|flush_smp_\w+|csd_\w+|_*flush_tlb_\w+|on_each_cpu\w*|native_flush_\w+",
    r"run_ksoftirqd|generic_exec_single|delay_\w+|_*(?:const_)?[un]?delay|native_apic\w*|apic_\w+|kick_\w+",
    r"(?:pv_)?native_(?:safe_)?halt|default_idle\w*|mwait_\w+|arch_cpu_idle|cpuidle_\w+|intel_idle\w*",
    r"acpi_(?:safe_halt|idle_\w+)|do_idle|cpu_startup_entry|_*cpu_do_idle|poll_idle|\w*irqentry_\w+",
    r"multi_cpu_stop|cpu_stopper_thread|text_poke\w*|_*text_poke\w*|stop_machine\w*|walk_stackframe",
    r"rcu_(?:gp_kthread|gp_fqs)\w*|smpboot_thread_fn|kthread|start_(?:secondary|kernel)|secondary_startup\w*|ret_from_fork\w*|dyntick_\w+",
)


K = CrashKind

#: What the CPU was doing is all there is to these: whoever stands at the instruction pointer.
_FAULTS = frozenset({K.DIVIDE_ERROR, K.INVALID_OPCODE, K.DOUBLE_FAULT, K.UBSAN, K.KCSAN})
_SLEEPING = frozenset({K.HUNG_TASK, K.ATOMIC_SLEEP, K.INVALID_WAIT_CONTEXT, K.WORKQUEUE_LOCKUP})
_IDLE = frozenset({"do_idle", "cpu_startup_entry", "cpu_idle_loop", "rcu_gp_kthread"})
STALLED = frozenset({K.SOFT_LOCKUP, K.HARD_LOCKUP, K.RCU_STALL})


def _lists(kind: CrashKind) -> list[re.Pattern[str]]:
    chosen = [REPORTERS, LOCKS, HELPERS]
    if kind not in _FAULTS | STALLED:
        chosen.append(ALLOCATORS)
    if kind is K.MEMORY_LEAK:
        chosen.append(CONTAINERS)
    if kind in _SLEEPING or kind in STALLED:
        chosen.append(SLEEPERS)
    if kind in STALLED:
        chosen.append(INTERRUPTS)
    return chosen


_LISTS = {kind: _lists(kind) for kind in CrashKind}


@lru_cache(maxsize=8192)
def _guilty(kind: CrashKind, function: str) -> bool:
    return not any(names.match(function) for names in _LISTS[kind])


def choose(
    kind: CrashKind, named: Sequence[str], entries: Sequence[Entry], text: str
) -> str | None:
    """The guilty function, or None when the report names none at all.

    `named` are the functions that the report's own first or lock lines tell, innermost first;
    `entries` are the frames in `text`.
    """
    for function in named:
        if function and _guilty(kind, function):
            return function
    ordered = [entry for entry in _main(kind, entries, text) if entry.frame.reliable]
    if not ordered:
        ordered = list(entries)
    if kind in STALLED and (busy := _busy(ordered)) is not None:
        return busy
    start = next((i for i, entry in enumerate(ordered) if entry.is_pc), 0)
    for entry in ordered[start:] + ordered[:start]:
        if _guilty(kind, entry.frame.function):
            return entry.frame.function
    rest = [*filter(None, named), *(entry.frame.function for entry in ordered[start:])]
    return next((name for name in rest if not REPORTERS.match(name)), None)


def _busy(entries: Sequence[Entry]) -> str | None:
    """The first function at which a CPU was at work, among CPUs of which some were idle."""
    starts = [index for index, entry in enumerate(entries) if entry.is_pc]
    for start, end in pairwise([*starts, len(entries)]):
        functions = [entry.frame.function for entry in entries[start:end]]
        if not _IDLE.isdisjoint(functions):
            continue
        for function in functions:
            if _guilty(K.RCU_STALL, function):
                return function
    return None


def _main(kind: CrashKind, entries: Sequence[Entry], text: str) -> list[Entry]:
    """The frames of the stack that the report is about: not of who allocated or freed."""
    if kind in STALLED:
        return list(entries)
    main = [part for part in sections(text) if part.is_main]
    return [e for e in entries if any(part.start <= e.position < part.end for part in main)]
