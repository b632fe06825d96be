//! `roundtable audit` on a real kernel: each situation is made, and the audit has to name it.
//!
//! The verdict is held against what the kernel does: a process that comes anew and maps in the same way takes one fault for
//! each slot that is shared, and one for each page of a slot that is not.

mod base_pages;
mod congruence;
mod differences;
mod files;
mod output;
mod postgres;
mod saying;
mod scene;
mod sight;

use roundtable_programs::tests;

use base_pages::shared_memory_on_base_pages;
use congruence::{
    first_of_several_and_untouched, not_congruent, shared_by_congruent_mappings, table_from_before, too_short,
};
use differences::{
    other_flags, other_protection, private_mappings, userfaultfd_minor, userfaultfd_write_protect,
};
use files::{gigantic_pages, path_and_unrelated_processes, sysv_segment};
use output::output_formats;
use postgres::{postgres_on_base_pages, postgres_on_huge_pages};
use sight::another_user_sees_less;

tests! {
    // Where and when.
    shared_by_congruent_mappings: 120,
    not_congruent: 120,
    too_short: 60,
    table_from_before: 60,
    first_of_several_and_untouched: 60,
    // How.
    other_protection: 60,
    other_flags: 60,
    private_mappings: 60,
    userfaultfd_write_protect: 60,
    userfaultfd_minor: 60,
    // What kind of file.
    sysv_segment: 60,
    path_and_unrelated_processes: 60,
    gigantic_pages: 60,
    // On base pages.
    shared_memory_on_base_pages: 60,
    // Not everything in sight.
    another_user_sees_less: 60,
    // Output.
    output_formats: 60,
    // PostgreSQL.
    postgres_on_huge_pages: 200,
    postgres_on_base_pages: 200,
}
