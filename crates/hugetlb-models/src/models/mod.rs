//! The models, by name.
//!
//! CPU 0 runs the first step's programs and CPU 1 the second's, if a model does not say otherwise.

mod ancestors;
mod changes;
mod faults;
mod private;
mod promises;
mod wide;

use hugetlb::ProtocolKind;

/// A model: two or three threads under a protocol.
#[derive(Clone, Copy)]
pub struct Model {
    /// The name: what races with what.
    pub name: &'static str,
    /// The model. Explorers run it many times.
    pub run: fn(ProtocolKind),
    /// How many preemptions loom tries; 0 for what has one thread.
    pub preemptions: usize,
}

/// The protocols that must survive every model.
pub const PROTOCOLS: [ProtocolKind; 4] =
    [ProtocolKind::None, ProtocolKind::FileLock, ProtocolKind::VmaLock, ProtocolKind::FileTables];

macro_rules! models {
    ($($module:ident { $($name:ident $preemptions:literal,)* })*) => {
        /// All models.
        pub const MODELS: &[Model] = &[
            $($(Model { name: stringify!($name), run: $module::$name, preemptions: $preemptions },)*)*
        ];
    };
}

models! {
    faults {
        fault_against_discard 3,
        fault_against_munmap 3,
        fault_against_punch 2,
        fault_against_punch_and_exit 3,
        fault_against_truncate 3,
        fault_against_truncate_and_exit 3,
        fault_against_truncate_with_promises 3,
        fault_against_two_truncations 3,
        fault_against_split 3,
        fault_against_protect 3,
        fault_against_fork 3,
        fault_against_reclaim 3,
        two_first_faults 3,
        first_fault_against_punch 3,
        first_faults_of_one_process 3,
        store_against_fork_of_private_pages 3,
        private_fault_against_punch 3,
        private_store_against_a_reader 3,
        private_store_against_the_childs_copy 3,
        private_store_against_exit_of_the_child 3,
        fault_against_a_walk 3,
    }
    changes {
        punch_against_mmap 3,
        punch_against_munmap 3,
        punch_against_munmap_of_a_part 3,
        punch_against_a_neighbour 3,
        slot_taken_against_a_fault 3,
        slot_taken_against_the_first_fault 3,
        slot_taken_against_fork 3,
        slot_taken_twice_against_punch 2,
        truncate_against_two_windows 2,
        a_large_mapping_goes_as_a_whole 0,
        punch_against_move 3,
        punch_against_split 2,
        punch_against_adoption 3,
        protect_against_adoption 3,
        fresh_page_against_old_translations 3,
        fresh_page_against_a_new_table 3,
        table_reuse_against_a_fault 2,
        allocate_against_mmap 3,
    }
    ancestors {
        cve_2024_57883_share_count_is_no_reference_count 3,
        cve_2025_38084_shared_again_before_the_split 3,
        cve_2025_38085_lockless_walker_in_a_table_that_changed_hands 3,
        cve_2026_23100_sharing_not_noticed_by_a_reader 3,
        truncation_holds_a_lock_that_is_freed 3,
    }
    private {
        discard_against_fault_of_a_promised_page 3,
        robbing_against_the_child 3,
        robbing_against_fork_of_the_child 3,
        robbing_spares_other_pages 3,
        truncate_against_fork_of_private_pages 3,
        punch_meets_all_of_many 0,
        truncate_against_mmap_with_promises 3,
    }
    promises {
        promises_are_kept 0,
    }
    wide {
        two_first_faults_below_a_wide_table 2,
        wide_fault_against_punch 2,
        wide_fault_against_truncate 2,
        wide_fault_against_leaving 2,
        wide_fault_against_fork_and_punch 2,
        wide_fault_against_munmap_of_a_part 2,
        wide_attach_against_exit 2,
    }
}

/// The model of CVE-2025-38085 on a machine that reuses tables at once: it has to fail.
pub const WITHOUT_GRACE: Model =
    Model { name: "walker_without_grace_periods", run: ancestors::walker_without_grace, preemptions: 2 };

impl Model {
    /// The model of a name.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn named(name: &str) -> Model {
        *MODELS
            .iter()
            .chain([&WITHOUT_GRACE])
            .find(|model| model.name == name)
            .unwrap_or_else(|| panic!("no such model: {name}"))
    }
}
