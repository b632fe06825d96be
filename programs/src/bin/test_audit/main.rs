//! `roundtable audit` on a real kernel: each situation is made, and the audit has to name it.
//!
//! The verdict is held against what the kernel does: a process that comes anew and maps in the same way takes one fault for
//! each slot that is shared, and one for each page of a slot that is not.

mod base_pages;
mod comings;
mod congruence;
mod differences;
mod files;
mod following;
mod holders;
mod impostor;
mod limits;
mod mounts;
mod namespaces;
mod output;
mod owners;
mod pool;
mod postgres;
mod private;
mod saying;
mod scene;
mod server;
mod sight;

use roundtable_programs::tests;

use base_pages::{shared_memory_of_each_kind, shared_memory_on_base_pages};
use comings::{several_in_one_memory, storm};
use congruence::{
    first_of_several_and_untouched, forked_processes, not_congruent, part_of_the_file,
    shared_by_congruent_mappings, table_from_before, too_short,
};
use differences::{
    locked_memory, other_flags, other_protection, other_reservation, private_mappings, protection_key,
    soft_dirty_tracking, userfaultfd_minor, userfaultfd_missing, userfaultfd_write_protect,
};
use files::{gigantic_pages, path_and_unrelated_processes, sysv_segment};
use holders::{
    file_left_on_a_mount, mount_with_a_promise, open_file_without_a_name, promises_and_private_pages,
    segment_left_behind,
};
use impostor::{
    a_file_left_in_a_container, a_file_left_in_a_users_folder, a_server_below_a_root_of_its_own,
    another_users_audit_removes_nothing,
};
use limits::{control_group_that_is_full, mount_that_is_full};
use mounts::{
    anonymous_huge_memory, deleted_and_new_file_of_one_name, one_file_at_two_mounts, other_mount_namespace,
    sysv_segments_of_two_containers,
};
use output::output_formats;
use owners::tables_of_private_memory;
use pool::pool_advice_keeps_what_is_in_use;
use postgres::{postgres_advice_followed, postgres_on_base_pages, postgres_on_huge_pages, postgres_plan};
use private::{mariadb_advice_followed, qemu_advice_followed};
use sight::{another_user_sees_less, counters_tell_without_root, hidden_processes, in_a_container};

tests! {
    // Where and when.
    shared_by_congruent_mappings: 120,
    not_congruent: 120,
    too_short: 60,
    table_from_before: 60,
    first_of_several_and_untouched: 60,
    part_of_the_file: 60,
    forked_processes: 60,
    // How.
    other_protection: 60,
    other_flags: 60,
    other_reservation: 60,
    locked_memory: 60,
    soft_dirty_tracking: 60,
    protection_key: 60,
    private_mappings: 60,
    userfaultfd_missing: 60,
    userfaultfd_write_protect: 60,
    userfaultfd_minor: 60,
    // What kind of file.
    sysv_segment: 60,
    path_and_unrelated_processes: 60,
    gigantic_pages: 150,
    anonymous_huge_memory: 60,
    // Which file.
    deleted_and_new_file_of_one_name: 60,
    other_mount_namespace: 60,
    one_file_at_two_mounts: 60,
    sysv_segments_of_two_containers: 60,
    // On base pages.
    shared_memory_on_base_pages: 60,
    shared_memory_of_each_kind: 60,
    // Pools.
    pool_advice_keeps_what_is_in_use: 60,
    // Who has the huge pages, and who the page tables.
    file_left_on_a_mount: 60,
    open_file_without_a_name: 60,
    segment_left_behind: 60,
    promises_and_private_pages: 60,
    mount_with_a_promise: 60,
    tables_of_private_memory: 60,
    // Why it does not start.
    mount_that_is_full: 60,
    control_group_that_is_full: 60,
    // Not everything in sight.
    another_user_sees_less: 60,
    counters_tell_without_root: 60,
    in_a_container: 60,
    hidden_processes: 60,
    // Somebody who means harm, and the commands for root.
    a_server_below_a_root_of_its_own: 60,
    a_file_left_in_a_container: 60,
    a_file_left_in_a_users_folder: 60,
    another_users_audit_removes_nothing: 60,
    // Not for long.
    storm: 60,
    several_in_one_memory: 60,
    // Output.
    output_formats: 60,
    // PostgreSQL.
    postgres_on_huge_pages: 200,
    postgres_on_base_pages: 200,
    postgres_plan: 60,
    postgres_advice_followed: 300,
    // Other servers.
    mariadb_advice_followed: 300,
    qemu_advice_followed: 300,
}
