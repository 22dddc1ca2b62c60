"""The kernel's functions that are not guilty, by what they are for.

In a stack they report, lock, allocate or sleep on behalf of whoever has called them. A name counts
whole; patterns are held to the functions of whole kernels, so that no driver's own is among them.
"""

from __future__ import annotations

import re


def _names(*patterns: str) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(patterns) + ")$")


#: Functions that print, trap, check or instrument.
REPORTERS = _names(
    # Printing.
    r"_*dump_stack\w*|show_stack\w*|show_trace\w*|dump_backtrace\w*|unwind_backtrace|_*sched_show_task",
    r"dump_cpu_task|rcu_dump_\w+|debug_show_\w+|_*save_stack_trace\w*|stack_depot_\w+|_*cfi_(?:check|slowpath|failure|handler|report)\w*|(?:report|handle)_cfi_\w+",
    # Tracing, where a lock, a switch or an allocation has a tracepoint.
    r"(?:_*bpf_trace|perf_trace_lock|trace_event_raw_event)_\w+|perf_tp_event|perf_trace_(?:run_bpf_submit|buf_\w+)|trace_call_bpf",
    r"ftrace_(?:regs_|graph_)?(?:caller|call|stub)|return_to_handler|arch_(?:rethook_\w+|ftrace_ops_list_func)|\w*kretprobe_trampoline\w*",
    # Fault injection.
    r"_*should_fail\w*|fail_dump",
    # Assertions, and what panics on behalf of a caller.
    r"(?:\w+_)?ass(?:ert)?_?fail(?:ed|ure)?|\w*assertion_fail\w*|spl_(?:panic|dumpstack)|gfs2_assert_\w+|rust_helper_\w+|rust_begin_unwind",
    r"(?:\w+_)?assert_(?:\w+_)?(?:i?locked|unlocked|held|enabled|disabled|empty|clean|dirty|uptodate|active|inactive|loaded|plane|pll|transcoder)",
    r"(?:\w+::)*rust_begin_unwind|<?core::(?:panicking|option|result)::.*",
    r"stack_trace_\w+|save_stack\w*|arch_stack_walk|walk_stackframe|print_stack_trace|show_regs\w*|dump_page|dump_mm",
    r"panic|vpanic|_*\w+_panic|__stack_chk_fail|__bug|warn|_*warn_\w+|warn_slowpath_\w+|__warn|warn_alloc\w*",
    r"print_\w*(?:bug|usage|deadlock|inversion|circular|dependency|header|warning|report|context)\w*",
    r"print_(?:address_\w+|error_\w+|trailer|bad_pte|unlock\w*|lock\w*)|describe_(?:object|address)\w*",
    # Exceptions, from the entry to die().
    r"_*report_bug|fixup_bug|handle_bug|dump_trace\w*|save_trace|handle_break|do_program_check|kernel_(?:bad_stack|stack_overflow)|die|die_\w+|__die\w*|oops_\w+|no_context|_*bad_area\w*",
    r"do_(?:kern|user)_addr_fault|_*do_page_fault|page_fault|page_fault_oops|async_page_fault",
    r"handle_page_fault|kernelmode_fixup_or_oops|do_error_trap|do_trap|do_trap_no_signal|do_invalid_op|invalid_op|error_entry",
    r"(?:do_)?(?:general_protection|divide_error|int3|double_fault|stack_segment)|error_code|exc_\w+",
    r"asm_exc_\w+|common_exception\w*|do_mem_abort|do_translation_fault|do_bad_area|do_sp_pc_abort",
    r"el[01]\w*_(?:sync|irq|da|dbg|undef|fpac|bti|inv|error|abort|handler|interrupt)\w*|bad_mode|bad_el0_sync",
    r"_*do_kernel_fault|die_kernel_fault|do_undefinstr|do_debug_exception|brk_handler|bug_handler",
    r"call_break_hook|do_alignment_fault|do_DataAbort|do_PrefetchAbort|__dabt_svc|__und_svc\w*",
    r"do_(?:tag_check|sect|alignment|tlb_conf|gpc|translation|kernel)_fault|__bad_stack",
    # Of powerpc, s390, mips and loongarch.
    r"_*(?:hash__)?_*do_(?:page|hash)_fault|_*bad_(?:kernel|page)_fault|(?:data|instruction)_access_\w+|program_check_\w+",
    r"early_(?:idt_handler|fixup_exception)\w*|alignment_(?:common|exception)\w*|interrupt_return\w*|_*do_pgm_check|pgm_check_\w+|monitor_event_\w+|illegal_op",
    r"do_(?:dat|protection|report_trap|fault_error|secure_storage)\w*|(?:specification|addressing|translation|data)_exception",
    r"do_(?:ri|bp|tr|ade|ale|trap_or_bp|cpu|fpe)|handle_(?:ri|bp|tr|adel?|ades?|tlb\w+)(?:_int)?|tlb_do_page_fault_\d",
    r"do_undef\w*|do_el\w+|arm64_serror_panic|do_serror|handle_exception|do_trap_\w+|ret_from_exception",
    r"Ldiv0(?:_64)?|__div0|__report_bad_irq|note_interrupt|panic_bad_stack|handle_stack_overflow|handle_bad_stack|excp_\w+|xen_\w*fault",
    # Sanitizers and hardening.
    r"_*kasan_\w+|_*(?:hw)?asan_\w+|check_memory_region\w*|check_region_inline|memory_is_\w+|bytes_is_\w+",
    r"verify_redzone_\w+|cache_\w+_debugcheck\w*|__slab_error|object_err|slab_err|slab_bug|slab_pad_check|check_bytes_and_report|check_object|on_freelist",
    r"free_debug_processing|free_to_partial_list|alloc_debug_processing|init_object|check_slab",
    r"_*kmsan_\w+|__msan_\w+|_*kcsan_\w+|__tsan_\w+|_*kfence_\w+|check_canary\w*|_*ubsan_\w+",
    r"val_to_string|handle_overflow|_*sanitizer_\w+|write_comp_data|check_kcov_mode|instrument_\w+",
    r"_*fortify_\w+|__(?:read|write)_overflow\w*|_*usercopy_\w+|report_usercopy|_*check_object_size",
    r"_*check_heap_object|check_(?:page_span|stack_object|bogus_address|kernel_text_object)",
    r"\w+_is_static_object|debug_print_object|_*debug_object_\w+|_*debug_check_no_\w+|lookup_object_or_alloc",
    r"ref_tracker_\w+|refcount_\w+|__refcount_\w+|_*list_(?:add|del)\w*_valid\w*|__list_\w+_or_report",
    r"netdev_rx_csum_fault|_*skb_checksum_complete\w*|check_data_corruption|skb_panic|skb_(?:over|under)_panic|_*skb_(?:put|push|pull)\w*",
    # Lockdep and the "might sleep" family.
    r"_*lockdep_\w+|mark_lock\w*|mark_usage|mark_irqflags|mark_held_locks|validate_chain|valid_state|check_usage\w*",
    r"check_(?:deadlock|noncircular|prev_add|prevs_add|irq_usage|path|wait_context|chain_key|redundant|no_collision)\w*",
    r"reacquire_held_locks|(?:add|lookup)_chain_cache\w*|graph_(?:un)?lock|debug_locks_off|count_matching_names|verify_lock_unused|static_obj",
    r"match_held_lock|hlock_\w+|usage_match|zap_class|lock_(?:sync|unpin_lock)|alloc_list_entry|get_lock_parent_ip|dynamic_might_resched",
    r"find_held_lock|register_lock_class|assign_lock_key|add_lock_to_list|look_up_lock_class|_*bfs|check_flags",
    r"___?might_\w+|might_\w+|_*cant_\w+|check_preemption_disabled|_*this_cpu_\w+_check",
    r"debug_lockdep_\w+|in_lock_functions|debug_smp_processor_id|_*schedule_bug|schedule_debug|preempt_count_\w+|rcu_sleep_check",
    # Page allocator checks.
    r"bad_page\w*|bad_range|check_new_page\w*|free_pages?_(?:check|prepare|is_bad)\w*|page_bad_reason",
    r"dequeue_task_idle|check_mm|vm_bug\w*|_*dump_page|mce_(?:panic|start|end|reign|timed_out)|do_machine_check",
)

#: Locks, and what orders memory on behalf of a caller.
LOCKS = _names(
    r"_*lock_(?:acquire|release|is_held|contended|acquired|downgrade|set_class|pin)\w*",
    r"_*(?:raw_)?(?:spin|read|write)_(?:un|try)?lock\w*|_*do_raw_\w+|_raw_\w+|_*raw_callee_\w+",
    r"(?:native_)?queued_\w*lock\w*|(?:native_)?queued_\w+_slowpath|_*(?:pv|kvm|xen)_\w*(?:spin|queued)_?\w*lock\w*|pv_(?:hash|unhash|wait|kick)\w*",
    r"arch_(?:spin|read|write)\w*lock\w*|virt_spin_lock\w*|debug_(?:spin|rw|read|write|mutex)\w*lock\w*",
    r"debug_(?:spin|mutex|rt_mutex)\w*|spin_(?:dump|bug)|rwlock_bug|mcs_\w*|osq_\w+|ticket_\w*lock\w*",
    r"_*mutex_\w+|_*ww_mutex_\w+|_*rt_mutex_\w+|rtlock_\w+|rt_(?:spin|read|write)_\w+|_*rt_mutex",
    r"_*down(?:_read|_write|_interruptible|_killable|_trylock|_timeout|_common)?(?:_\w+)?",
    r"_*up(?:_read|_write)?|_*rwsem_\w+|call_rwsem_\w+|_*percpu_(?:down|up)_\w+|_*percpu_rwsem_\w+",
    r"_*rcu_read_(?:un)?lock\w*|rcu_lock_\w+|_*srcu_read_\w+|srcu_lock_\w+|rcu_dereference\w*",
    r"rcu_(?:is_watching|note_context_switch|preempt_deferred_qs\w*|lockdep_\w+)|downgrade_write|class_\w+_(?:con|de)structor|_*local_(?:bh|irq)_\w+|_*local_(?:un)?lock\w*|trace_(?:hard|soft)irqs_\w+|try_to_take_rt_mutex|mark_wakeup_next_waiter",
    r"_*bit_spin_\w+|seqcount_\w+|_*fs_reclaim_\w+|_*read_seq\w+|_*write_seq\w+|do_write_seq\w+|lockref_\w+",
    r"_*(?:un)?lock_sock\w*|_*release_sock\w*|task_blocks_on_rt_mutex|_*rt_mutex\w*|remove_waiter",
    r"inode_(?:un)?lock(?:_\w+)?|inode_trylock\w*|raw_spin_rq_\w+|_*double_(?:rq|raw|_rq)\w*lock\w*",
    r"cpus_(?:read|write)_(?:un|try)?lock|(?:get|put)_online_cpus|mmap_(?:read|write)_(?:un|try)?lock\w*|text|owner_on_cpu|_*six_(?:un|re|try)?lock\w*|clk_(?:prepare|enable)_(?:un)?lock|regmap_(?:un)?lock_\w+|(?:folio_)?unlock_(?:page|buffer)|folio_unlock",
)

#: Helpers that touch what they are given.
HELPERS = _names(
    r"(?!strset_)_*(?:mem|str|strn|strl|strs)(?:cpy|move|set|cmp|chr|len|cat|ncmp|ncpy|nlen|str|casecmp|scan)\w*",
    r"_*mem(?:cpy|set|move)_\w+|_*str(?:pbrk|spn|rchr|nchr|scpy|ncasecmp|dup)\w*|sized_strscpy|bcmp",
    r"_*(?:raw_|arm_|asm_)?copy_(?:from|to|in|tofrom)_(?:user|iter|kernel)(?:_(?:no|nmi|flush|inatomic|ll|base|vmx|power|mc|generic|full)\w*)?|_*copy_user(?:_(?!offload)\w+)?",
    r"[A-Z]+\d*mem(?:cpy|set|move)|asm_mem\w+|mmio(?:cpy|set)|_*bzero|copy_mc_\w+|csum_and_copy_\w+|aligned_copy|fallback_scalar_\w+",
    r"strim|strsep|strstarts|strreplace|skip_spaces|match_(?:token|string|strdup)|_*kstrto\w+|simple_strto\w+|memparse|_*parse_integer\w*",
    r"_*bitmap_(?:and|or|xor|andnot|weight|fill|zero|copy|set|clear|empty|full|subset|equal|intersects|find_next_zero_area\w*)",
    r"rep_movs\w*|rep_stos\w*|_*clear_(?:page|highpage|user)(?:_(?:erms|orig|rep|mc))?|copy_(?:high)?page(?:_(?:to|from)_iter\w*|_rep|_mc)?|copyin|copyout|iterate_and_\w+",
    r"_*(?:get|put)_user(?:_(?:\d|no|bad|asm|size|error|handle)\w*)?|_*probe_kernel_\w+|(?:do_)?str\w+_user\w*|_*crc(?:\d\d?c?(?:_\w+)?|_\w+)",
    r"read_word_at_a_time|copy_mount_\w+|simple_copy_to_iter|_*skb_datagram_iter|skb_copy_datagram_\w+",
    # Those who wait and wake, on what their caller gives them.
    r"_*(?:prepare_to|finish|init|add|autoremove)_(?:s?wait|wake)\w*|complete(?:_all|_\w+_locked)?",
    r"_*wait_for_(?:common|completion)\w*|ep_poll_callback|_*synchronize_(?:s?rcu|net|irq|hardirq|sched)\w*",
    r"rcu_barrier\w*|srcu_barrier|percpu_ref_(?:switch_to_\w+_sync|kill_and_\w+)|blk_(?:mq_)?(?:un)?freeze_queue\w*",
    r"_*s?wake_up(?:_(?!new_task|klogd)\w+)?|wake_(?:atomic_t|bit|page|once|var)_?\w*function",
    # Deferred work and timers.
    r"_*(?:start_)?flush_(?:delayed_|rcu_)?work(?:queue\w*)?|_*cancel_(?:delayed_)?work(?:_sync|_timer)?|(?:drain|destroy)_workqueue|_*(?:queue|mod|schedule|insert)_(?:delayed_|rcu_)?work(?:_on|_node)?|__cancel_work_\w+",
    r"_*queue_work\w*|insert_work|touch_w(?:q|ork)_lockdep_map|check_flush_dependency|lock_timer_base|_*mod_timer\w*|add_timer\w*|_*(?:try_to_)?del_timer\w*|_*timer_delete\w*",
    r"timer_(?:reduce|shutdown)\w*|detach_(?:\w*timer|if_pending)|enqueue_timer|internal_add_timer|do_init_timer",
    r"hrtimer_(?:active|try_to_cancel|cancel|start|init|setup|reprogram)\w*",
    r"call_rcu\w*|_*k[vz]*free_(?:call_)?rcu\w*|call_srcu",
    # Registration of devices, files and links on behalf of a driver.
    r"_*kobject_\w+|klist_\w+|kset_register|sysfs_(?:warn_dup|create_|add_|do_create_)\w*|_*device_(?:add|create|register|initialize|link_add)\w*|get_device_parent",
    r"d?pm_sysfs_\w+|(?:devm_)?device_release|device_for_each_child\w*|(?:i2c|spi|tty)_(?:un)?register_(?:device|adapter|controller|driver|board_info)\w*|hwrng_(?:un)?register|i2c_del_adapter|device_pm_(?:add|remove|move)\w*|devices_kset_move\w*|cdev_(?:device_)?add|misc_register|platform_device_(?:add|register)\w*|device_reorder_to_tail",
    r"device_(?:del|unregister|destroy)\w*|of_device_(?:add|register)|proc_(?:register|create|mkdir|symlink)\w*",
    # Rules that only a caller can break.
    r"debug_dma_\w+|check_(?:unmap|sync|for_(?:stack|illegal_area))|dma_(?:un)?map_(?:page|sg|single|resource)\w*|_*dmam?_(?:alloc|free)_(?:attrs|coherent|pages|non\w+|wc\w*|contiguous|from_pool)|(?:netdev|netns)_tracker_(?:alloc|free)|netdev_(?:put|hold)|_*(?:en|dis)able_irq\w*",
    r"clk_(?:core_)?(?:disable|enable|unprepare)\w*|_*regulator_put|remove_proc_\w+|sysfs_remove_\w+|module_put",
    r"static_key_slow_dec\w*|gpiod?_\w*cansleep|gpiod_[gs]et_(?:raw_)?value|_*free_irq|call_netdevice_notifiers\w*|sysctl_check_table\w*|set_fail|_*register_sysctl\w*",
    r"_*rollback_registered\w*|(?:un)?register_netdev\w*|(?:drop|inc|clear|set)_nlink",
    r"usb_(?:kill|poison|unlink)_(?:anchored_)?urbs?|usb_hcd_(?:submit|unlink)_urb|ktime_get\w*|add_uevent_var",
    r"device_(?:create|remove)_(?:bin_)?file|usb_(?:submit_urb|start_wait_urb|internal_control_msg|(?:bulk|control|interrupt)_msg)\w*",
    r"_*(?:arch_|raw_|generic_)*atomic(?:64|_long)?_\w+|variable_test_bit|const(?:ant)?_test_bit",
    r"_*(?:arch_|generic_)?_*(?:test|set|clear|change|assign)_(?:and_\w+_)?bit\w*|_*read_once\w*",
    r"native_(?:read|write)_msr\w*|(?:__)?(?:rd|wr)msr\w*",
    r"_*write_once\w*|(?:arch_)?(?:try_)?cmpxchg\w*|_*xchg\w*|_*find_(?:first|next|last|nth|random)?_?(?:and\w*_|or_|zero_|clump8?_)*bit\w*|_*ffs|_*fls\w*|_*hweight\w*",
    r"_*h?list_(?:(?:add|del)(?:_(?:tail|init|rcu|entry|valid|head|before|behind|careful))*|move(?:_tail)?|(?:splice|empty|replace|first|last|is|bl|entry|unhashed)(?:_\w+)?|next_(?:entry|rcu)\w*)",
    r"INIT_(?:H?LIST_HEAD\w*)|hlist_\w+|llist_\w+|_*rb_(?:next|prev|first|last|erase|insert|rotate)(?!_bss)\w*",
    r"kref_\w+|kobject_(?:get|put)|get_device|put_device|ERR_PTR|IS_ERR\w*|PTR_ERR|rcu_assign\w*",
    r"get_unaligned\w*|put_unaligned\w*|_*[lb]e\d+_to_cpup?|_*swab\w+|_*fswab\w+|div\w*_u?s?\d+",
    r"_*compound_head|page_to_(?!skb)\w+|virt_to_\w+|_*phys_addr\w*|folio_flags\w*|Page[A-Z]\w+|page_ref_\w+",
    r"(?:v|s|vs|sn|vsn|sc|vsc)n?printf|string|string_nocheck|pointer|number|format_decode|_*v?printk\w*",
    r"hex_string|va_format|widen_string|\w+_addr_string|uuid_string|dentry_name|print_hex_dump\w*|hex_dump_\w+",
    r"_*netdev_(?:printk|emerg|alert|crit|err|warn|notice|info)|_*(?:btrfs|f2fs|ext4|xfs|fat|hfs)_(?:printk|msg)\w*|_*drm_(?:dev_)?(?:err|dbg|printk)\w*|_*dynamic_\w+_dbg",
    r"_*dev_\w*printk\w*|_dev_(?:emerg|alert|crit|err|warn|notice|info)",
    r"vprintk_\w+|console_(?:(?:un|try)?lock|flush|emit|call_|cont)\w*|arch_local_\w+|arch_irqs?_\w+|native_(?:save|restore)_fl",
    r"\w*(?:return|indirect)_thunk\w*|clear_bhb_loop|page_fixed_fake_head|_*csum_partial\w*|do_csum|ip_fast_csum|seq_(?:v?printf|puts|write)",
    # arm64's out-of-line atomics, position-independent string functions and user copies.
    r"__ll_sc_\w+|__lse_\w+|__aarch64_\w+|__pi_\w+|_*arch_(?:copy|clear)_\w+|__cmpwait_\w+",
    r"seqprop_\w+|get_current|current_thread_info|cpu_relax|rep_nop|native_pause|_*raw_(?:read|write)\w*",
    r"(?:read|write)[bwlq](?:_relaxed)?|io(?:read|write)\d+\w*|(?:in|out)[bwl]|__preempt_\w+",
)

#: Those who hand out and take back memory.
ALLOCATORS = _names(
    r"_*k[vmz]*alloc\w*|_*kcalloc\w*|_*kvcalloc\w*|_*krealloc\w*|_*kmem_\w+|_*k[vz]*free\w*|_*v[mz]?alloc\w*",
    r"_*vfree\w*|_*vunmap\w*|vzalloc\w*|_*do_kmalloc\w*|_*slab_\w+|_*slub_\w+|new_slab\w*|allocate_slab",
    r"kernel_map_pages|_*get_vm_area\w*|alloc_vmap_area|discard_slab|free_slab|get_partial\w*|_*cache_(?:alloc|grow|free|flusharray|init)\w*",
    r"fallback_alloc|do_slab_free|cache_from_obj|memcg_slab_\w+|[gs]et_freepointer\w*|qlist_\w+|quarantine_\w+",
    r"_*(?:alloc|get|get_free|get_zeroed|free)_(?:frozen_)?pages?(?:_\w+)?|get_page_from_freelist|prep_new_page",
    r"post_alloc_hook|_*rmqueue\w*|_*ksize|_*free_(?:unref|one|pcp|hot_cold|the|compound|frozen|tail|large|huge)\w*|_*put_(?:single_|compound_)?page\w*",
    r"release_pages|destroy_(?:large_folio|compound_page)|folio_alloc\w*|_*folio_put\w*|folios_put\w*|_*poison_\w+|page_poison\w*|check_poison\w*|_*kernel_(?:un)?poison_\w+|unpoison_\w+",
    r"_*kstr(?:n)?dup\w*|_*kmemdup\w*|kasprintf|kvasprintf\w*|v?memdup_\w+|strndup_user|_*kmemleak_\w+",
    r"_*create_object|delete_object\w*|devm_k\w+|pcpu_alloc\w*|_*alloc_percpu\w*|free_percpu|mempool_\w+",
    r"_*alloc_skb\w*|_*netdev_alloc_\w+|_*napi_alloc_\w+|_*build_skb\w*|kmalloc_reserve|_*kfree_skb\w*",
    r"page_frag_\w+|_*page_pool_\w+|skb_(?:free\w*|release_all)|consume_skb|sk_skb_reason_drop|napi_consume_skb|_*rcu_free_(?:slab|sheaf\w*)|alloc_buffer",
)

#: Those who allocate for a caller's data structure: only a leak is their caller's doing.
CONTAINERS = _names(
    r"_*radix_tree_\w+|xas_\w+|_*xa_\w+|_*idr_\w+|_*ida_\w+|mas_\w+|mt_(?:find|next|prev|alloc|free|destroy)\w*|mtree_\w+|array_\w+_alloc",
    r"skb_(?:clone|copy|unshare|alloc)\w*|pskb_\w+|sock_(?:kmalloc|alloc_send_\w+|wmalloc)|sk_(?:prot_)?alloc|alloc_(?:netdev|etherdev)\w*|usb_alloc_urb|security_\w+",
    r"lsm_\w+|ext_alloc|_*alloc_workqueue|krealloc_\w+|bpf_map_\w*alloc\w*|alloc_inode|kobject_set_\w+|dev_set_name",
)

#: Those who give back what a caller holds, and are not made for NULL.
RELEASERS = _names(r"[if]put|dput|igrab|_*mntput\w*|path_put|skb_release_\w+")

#: Those who put a task to sleep.
SLEEPERS = _names(
    r"_*schedule(?:_(?:timeout|hrtimeout|preempt|idle|tail|user|rtlock|loop|delayed|work|bug)\w*)?|__sched_text_start|io_schedule\w*|preempt_schedule\w*|_*cond_resched\w*|_*switch_to\w*|context_switch",
    r"\w*wait_for_(?:common|completion)\w*|do_wait_for_common|_*closure_sync\w*|_*wait_on_(?:bit|page|buffer)\w*|wait_woken",
    r"bit_wait\w*|out_of_line_wait\w*|folio_wait_\w+|_*lock_page\w*|_*folio_lock\w*|_*lock_buffer",
    # SPL's condition variables, on which ZFS sleeps.
    r"_*cv_(?:timed)?wait\w*|(?:pv|xen)_wait\w*|kvm_wait|kvm_async_pf_\w+",
    r"kthread_(?:stop|park)\w*|sleep_on_page\w*|inode_wait|blk_io_schedule|_*wait_rcu_gp",
    r"msleep\w*|usleep_\w+|do_nanosleep|hrtimer_nanosleep|swait_\w+|prepare_to_s?wait\w*|finish_task_switch",
)

#: Interrupt, timer and cross-CPU machinery, in whose midst a stall is noticed.
INTERRUPTS = _names(
    r"nmi_\w+|arch_trigger_\w+|trigger_\w*backtrace\w*|trigger_load_balance|default_do_nmi|do_nmi|end_repeat_nmi|perf_event_nmi\w*",
    r"_*perf_event_\w*overflow|x86_pmu_\w+|intel_pmu_\w+|watchdog_(?:timer|overflow|check|hardlockup|buddy|nmi|interrupt|touch)\w*|lockup_detector\w*|first_nmi",
    r"print_(?:cpu|other_cpu)_?stall\w*|check_cpu_stall\w*|rcu_(?:sched_clock|check_|dump_|pending)\w*",
    r"_*rcu_pending|update_process_times|tick_\w+|_*hrtimer_\w+|_*run_hrtimer\w*|_*run_timers?\w*",
    r"timer_\w*interrupt|account_(?:\w+_time|\w*ticks?)|sched_tick|scheduler_tick|local_apic_timer\w*|\w*apic_timer\w*",
    r"smp_\w+_interrupt|smp_(?:stop|text_poke)_\w+|smp_(?:trace_)?(?:apic|reschedule|irq_work|kvm|error|spurious|thermal|threshold|x86|reboot)\w*|\w*sysvec_\w+|call_timer_fn|expire_timers|irq_exit\w*|_*irq_(?:enter|exit|work|finalize|forced)\w*|_*do_softirq\w*|_*softirq\w*",
    r"handle_softirqs|invoke_softirq|_*handle_\w*irq\w*|generic_handle_\w+|do_IRQ|(?:asm_|__)*common_interrupt",
    r"lapic_next_\w+|clockevents_program_\w+|touch_\w*watchdog\w*|rcu_momentary_\w+",
    r"ret_from_intr|retint_\w+|gic_\w+|arch_timer_\w+|do_interrupt_handler|call_on_irq_stack|do_irq\w*",
    r"(?:arch_)?call_function_\w+|flush_smp_\w+|csd_\w+|_*flush_tlb_\w+|on_each_cpu\w*|native_flush_\w+",
    r"run_ksoftirqd|generic_exec_single|delay_(?:tsc|loop|mwaitx|halt\w*|hpet)|_*(?:const_)?[un]?delay|native_apic\w*|apic_\w+|ct_(?:nmi|irq|kernel|user|idle)_(?:enter|exit)\w*|rcu_(?:nmi|irq|eqs|dynticks_eqs|user|idle)_(?:enter|exit)\w*|kick_(?:process|ilb|all_cpus_sync)",
    r"(?:pv_)?native_(?:safe_)?halt|default_idle\w*|mwait_\w+|arch_cpu_idle|cpuidle_\w+|intel_idle\w*",
    r"acpi_(?:safe_halt|idle_\w+)|do_idle|cpu_startup_entry|_*cpu_do_idle|poll_idle|\w*irqentry_\w+",
    r"multi_cpu_stop|cpu_stopper_thread|text_poke\w*|_*text_poke\w*|stop_machine\w*|walk_stackframe",
    # Of other architectures.
    r"_*xen_(?:evtchn|hypercall|timer|do_hyper|safe_halt)\w*|\w*xen_evtchn_do_upcall|_*evtchn_(?:fifo|2l)_\w+|_*timer_interrupt|decrementer_\w+|riscv_(?:intc|timer)_\w+|do_ext_(?:irq|interrupt)|ext_int_handler",
    r"plat_irq_dispatch|c0_compare_interrupt|handle_IPI|do_handle_IPI|twd_handler|__irq_(?:svc|usr|invalid)",
    r"clock_comparator_\w+|handle_arch_irq|handle_riscv_irq|handle_loongarch_irq|constant_timer_\w+|ret_from_exception",
    r"rcu_(?:gp_kthread|gp_fqs)\w*|smpboot_thread_fn|kthread|start_(?:secondary|kernel)|secondary_startup\w*|ret_from_fork\w*|dyntick_\w+",
)


#: Those who call through a pointer: in a stack the function before them is the caller's own, and
#: it is the same one wherever in its depths a CPU happens to be.
DISPATCHERS = _names(
    # Work, timers, softirqs, threads.
    r"process_(?:one_work|scheduled_works)|worker_thread|kthread(?:_worker_fn)?|ret_from_\w*fork\w*",
    r"call_timer_fn|expire_timers|_*run_timers?\w*|run_timer_\w+|_*(?:hrtimer_run_queues|run_hrtimer)\w*",
    r"hrtimer_run_softirq|_*do_softirq\w*|handle_softirqs|run_ksoftirqd|smpboot_thread_fn|tasklet_\w*action\w*",
    r"net_rx_action|_*napi_poll|process_backlog|_*netif_receive_skb\w*|napi_\w*(?:receive|complete|gro)\w*",
    r"netif_(?:rx|receive)\w*|_*handle_irq_event\w*|irq_(?:forced_)?thread\w*|task_work_run|irq_work_\w+",
    r"cpuhp_(?:invoke_callback|thread_fun)\w*|_*(?:generic_smp_call|flush_smp_call)_function\w*",
    r"rcu_(?:core|do_batch|process_callbacks|cpu_kthread|core_si|reclaim_tiny)\w*|_*rcu_reclaim",
    # Files.
    r"_{0,4}fput\w*|fput_close\w*|do_dentry_open|filp_close|(?:do_)?vfs_ioctl",
    r"ksys_(?:ioctl|p?(?:read|write)\w*|fsync|fallocate)|(?:chrdev|misc|blkdev)_open",
    r"_*vfs_(?:read|write|readv|writev|iter_read|iter_write|fsync\w*|fallocate|poll)|new_sync_(?:read|write)",
    r"do_iter_\w+|do_(?:read|write)v\w*|do_loop_readv_writev|call_(?:read|write)_iter|do_fsync|_*mmap_region|call_mmap|_*do_fault",
    r"\w*mount_(?:fs|bdev|nodev|single)|get_tree_(?:bdev|nodev|single)\w*|vfs_get_tree|legacy_get_tree|vfs_kern_mount",
    r"proc_(?:reg|sys)_\w+|proc_single_show|kernfs_(?:fop|seq)_\w+|sysfs_kf_\w+|(?:dev|bus|drv|class)_attr_\w+",
    r"kobj_attr_\w+|seq_read\w*|traverse|(?:full_proxy|debugfs|simple_attr|param_attr|module_attr|configfs)_\w+",
    # Sockets.
    r"_*sock_(?:send|recv)msg\w*|sock_(?:read|write)_iter|(?:compat_)?sys_(?:ioctl|p?(?:read|write)v?\d*|close)",
    r"inet6?_(?:send|recv)msg|sock_(?:do_)?ioctl|_*sys_[gs]etsockopt|do_sock_[gs]etsockopt|sock_common_\w+",
    r"netlink_(?:rcv_skb|unicast\w*)|_*netlink_dump\w*|(?:genl|rtnetlink|nfnetlink)_rcv\w*|genl_\w*(?:rcv|doit)\w*",
    # Drivers and init.
    r"do_one_initcall|really_probe|call_driver_probe|driver_probe_device|platform_(?:drv_)?probe",
    r"usb_probe_(?:interface|device)|(?:local_)?pci_probe|\w+_(?:bus|device|dev|drv)_probe|spi_probe",
    # The end of a task.
    r"do_exit|_*mmput|exit_mm|get_signal",
)
#: The outermost frames of every stack.
ENTRIES = _names(
    r"process_(?:one_work|scheduled_works)|worker_thread|kthread|ret_from_\w*fork\w*|start_kernel",
    r"do_syscall_\w+|(?:x64|ia32|x32)_sys_call|entry_[A-Z]\w+|el0_svc\w*|invoke_syscall|do_fast_syscall\w*|do_int80\w*|system_call\w*",
    r"ret_(?:fast|from)_syscall|syscall_(?:handler|exit|return)\w*|x86_64_start\w*|secondary_startup\w*|start_secondary",
)
#: What a CPU goes through from its interrupt, or exception, to the report of it.
TRAPS = _names(
    r"asm_(?:exc|sysvec|common)_\w+|(?:sys|common)vec_\w+|\w*apic_timer_interrupt\w*|invalid_op|page_fault|async_page_fault",
    r"el[01]\w*_(?:sync|irq|da|dbg|abort|undef|error|interrupt|brk64|handler)\w*|__(?:dabt|und|irq|pabt)_svc\w*",
    r"general_protection|divide_error|error_entry|handle_exception|ret_from_(?:exception|intr|irq)\w*",
)
#: Those who raise a trap's report: what is between them and the trap's entry is the kernel's own.
RAISERS = _names(
    r"panic|vpanic|nmi_panic|panic_bad_stack|_*die\w*|oops_\w+|_*warn\w*|report_bug|kasan_report\w*|_*do_kernel_fault"
)
#: Whoever these call works for them.
INSTRUMENTS = _names(
    r"(?:v|s|vs|sn|vsn|sc|vsc)n?printf|hex_dump_to_buffer|print_hex_dump|va_format",
    r"_*dump_stack\w*|show_stack|dump_backtrace|_*sched_show_task|lock_(?:acquire|release|is_held)\w*",
    r"arch_stack_walk|stack_trace_save\w*|_*save_stack(?:_trace)?\w*|_*kasan_\w+|_*kmsan_\w+|__msan_\w+",
    r"_*set_page_owner|stack_depot_\w+|_*kmemleak_\w+",
)
#: The same where a CPU is not the cause of what it happened to do.
CHANCE = _names(r"_*v?printk\w*|vprintk_\w+|console_(?!callback)\w+|_*lockdep_\w+|_dev_\w+")
CROSS_CALLS = _names(r"smp_call_function\w*|csd_lock_wait|_*csd_\w+")
