//! The protocols of sharing by name. What each does is in `sharing`.

/// Hands all protocols to a macro: name in `hugetlb_sharing=`, and module of `sharing`. **A protocol is one line here and
/// its file or folder in `sharing`**; whoever deletes both has deleted the protocol. The last one is the default.
macro_rules! protocols {
    ($to:ident) => {
        $to! {
            None = "none" in none, "Not at all: each mapping has tables of its own. For comparison.";
            Unfenced = "unfenced" if "lab" in unfenced, "Tables adopted from a partner, and faults that nothing fences: Linux before 5.7. It **corrupts memory**, and is there to show it.";
            FileLock = "file-lock" in file_lock, "Tables adopted from a partner; faults are fenced by one lock of the file (Linux 5.7 to 6.0).";
            VmaLock = "vma-lock" in vma_lock, "Tables adopted from a partner; faults are fenced by the mapping's own reader/writer lock (Linux 6.1 and later).";
            FileTables = "file-tables" in file_tables, "Tables that belong to the file, as its pages do.";
        }
    };
}

macro_rules! kinds {
    ($($kind:ident = $name:literal $(if $feature:literal)? in $module:ident, $meaning:literal;)*) => {
        /// How page tables are shared.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[non_exhaustive]
        pub enum ProtocolKind {
            $(
                #[doc = $meaning]
                $(#[cfg(feature = $feature)])?
                $kind,
            )*
        }

        impl ProtocolKind {
            /// The protocols by the names that `hugetlb_sharing=` takes.
            pub const ALL: &[(&'static str, ProtocolKind)] =
                &[$($(#[cfg(feature = $feature)])? ($name, ProtocolKind::$kind)),*];

            /// Names of protocols that only builds with the feature `lab` have: they are wrong, to be seen going wrong.
            pub const LAB_ONLY: &[&'static str] = &[$($(($feature, $name).1,)?)*];
        }
    };
}

protocols!(kinds);

impl Default for ProtocolKind {
    fn default() -> ProtocolKind {
        const { ProtocolKind::ALL[ProtocolKind::ALL.len() - 1].1 }
    }
}

impl ProtocolKind {
    /// The protocol of a name, if this build has it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<ProtocolKind> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// The name of the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}
