//! Points at which a test can break the library on purpose, to see that a checker notices.
//!
//! Each mutant drops one flush, one lock, one look or one count. In a build with `--cfg roundtable_model` a test selects one
//! by its name; in all others a mutant is a constant `false`, and nothing of it is left in the program.

#[cfg(all(roundtable_model, target_os = "none"))]
compile_error!("mutants are for tests on a host: no kernel has them");

/// As of `core`, but not while the library is broken on purpose: then the models have to see it, not the library itself.
macro_rules! debug_assert {
    ($($what:tt)*) => {
        if cfg!(debug_assertions) && !$crate::mutant::is_broken() {
            assert!($($what)*);
        }
    };
}

/// Declares the mutants of a crate: the documentation says what is dropped.
#[doc(hidden)]
#[macro_export]
macro_rules! mutants {
    ($($(#[doc = $dropped:literal])* $name:ident,)*) => {
        /// A way in which the library can be broken.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Mutant {
            $($(#[doc = $dropped])* $name,)*
        }

        /// All mutants: the name, what is dropped.
        #[cfg(roundtable_model)]
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), concat!($($dropped),*)),)*];

        impl Mutant {
            /// Whether the library is to be broken in this way.
            #[cfg(roundtable_model)]
            pub(crate) fn is_on(self) -> bool {
                let name = match self {
                    $(Mutant::$name => stringify!($name),)*
                };
                $crate::mutant::selected() == Some(name)
            }

            /// Whether the library is to be broken in this way: never.
            #[cfg(not(roundtable_model))]
            #[inline(always)]
            pub(crate) const fn is_on(self) -> bool {
                false
            }
        }
    };
}

mutants! {
    /// An attachment to a table of the file is not counted.
    AttachmentNotCounted,
    /// A new table of the file does not get the pages that are there.
    TableNotFilled,
    /// An entry in a table of the file is written without a release.
    ShownWithoutRelease,
    /// A fresh page is not shown in the file's tables.
    FreshPageNotShown,
    /// A page leaves the content and stays in the file's tables.
    RemovedButShown,
    /// Pages that come into sight when a file grows are not shown.
    GrownFileNotShown,
    /// A page is added without a look at the end of the file under the lock.
    EndNotLookedAtAgain,
    /// A slot is attached whatever is in its entry.
    SlotAttachedTwice,
    /// The address space that attaches is not known to the file.
    SpaceNotJoined,
    /// The table of another mapping in a slot is taken for the mapping's own.
    StrangersTableTaken,
    /// A table that two make at once is noted twice.
    TableMadeTwice,
    /// A new table is not put below those that are to lead to it.
    ChildNotLinked,
    /// A table below is not counted as an attachment by the one above that leads to it.
    ChildNotCounted,
}

/// The selected mutant.
#[cfg(roundtable_model)]
static SELECTED: std::sync::OnceLock<std::string::String> = std::sync::OnceLock::new();

/// Breaks the library in one way from now on, for the whole program. No model schedules it: it is set before all.
#[cfg(roundtable_model)]
pub fn select(name: &str) {
    SELECTED.get_or_init(|| name.into());
}

/// Whether a mutant is selected.
#[cfg(roundtable_model)]
#[must_use]
pub fn is_broken() -> bool {
    selected().is_some()
}

/// Whether a mutant is selected: none.
#[cfg(not(roundtable_model))]
#[inline(always)]
#[must_use]
pub const fn is_broken() -> bool {
    false
}

/// The selected mutant.
#[cfg(roundtable_model)]
pub fn selected() -> Option<&'static str> {
    SELECTED.get().map(|name| name.as_str())
}
