//! A simulated machine with a TLB per CPU, to test `hugetlb` on.
