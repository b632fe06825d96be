//! Points at which a test can break the library on purpose, to see that a checker notices.
//!
//! Each mutant drops one flush, one lock, one look or one count. With the feature `mutants` a test selects one by its name;
//! without it a mutant is a constant `false`, and nothing of it is left in the program.

/// Declares the mutants: the documentation says what is dropped. The group is who has to notice.
macro_rules! mutants {
    ($($group:ident { $($(#[doc = $dropped:literal])* $name:ident,)* })*) => {
        /// A way in which the library can be broken.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Mutant {
            $($($(#[doc = $dropped])* $name,)*)*
        }

        /// All mutants: who has to notice, the name, what is dropped.
        #[cfg(feature = "mutants")]
        const ALL: &[(Group, Mutant, &str, &str)] = &[
            $($((Group::$group, Mutant::$name, stringify!($name), concat!($($dropped),*)),)*)*
        ];
    };
}

mutants! {
    Models {
        /// A batch does not flush the addresses that it noted.
        FlushForgotten,
    }
    Simulator {
        /// A fault that a truncation overtook does not leave the promise behind that its page used up.
        PromiseTakenAlong,
    }
}

#[cfg(feature = "mutants")]
mod selection {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use super::{ALL, Mutant};

    /// Who has to notice a mutant.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Group {
        /// A model that loom or shuttle runs.
        Models,
        /// A test on the simulated machine.
        Simulator,
    }

    /// One more than the place of the selected mutant, 0 for none. No model schedules it: it is set before all.
    static SELECTED: AtomicUsize = AtomicUsize::new(0);

    /// Breaks the library in one way from now on, for the whole program.
    ///
    /// # Panics
    ///
    /// When there is no such mutant: a test that selects nothing would find nothing.
    pub fn select(name: &str) {
        let place = ALL.iter().position(|(_, _, known, _)| *known == name);
        let place = place.unwrap_or_else(|| panic!("no such mutant: {name}"));
        SELECTED.store(place + 1, Ordering::SeqCst);
    }

    /// The mutants of a group: the name, and what is dropped.
    pub fn all(group: Group) -> impl Iterator<Item = (&'static str, &'static str)> {
        ALL.iter().filter(move |(of, ..)| *of == group).map(|(_, _, name, dropped)| (*name, dropped.trim()))
    }

    impl Mutant {
        /// Whether the library is to be broken in this way.
        pub(crate) fn is_on(self) -> bool {
            // Relaxed: set before the threads start.
            match SELECTED.load(Ordering::Relaxed) {
                0 => false,
                selected => ALL[selected - 1].1 == self,
            }
        }
    }
}

#[cfg(feature = "mutants")]
pub use selection::{Group, all, select};

#[cfg(not(feature = "mutants"))]
impl Mutant {
    /// Whether the library is to be broken in this way: never.
    #[inline(always)]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}
