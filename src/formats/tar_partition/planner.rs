//! Sequential next-fit: when a member begins a new partition.

/// WAL-E's bound on the sum of member sizes in one partition, 1.5 GiB; headers and padding are not counted (§4.6).
pub const MAX_PARTITION_BYTES: u64 = 1_610_612_736;

/// WAL-E's bound on the members of one partition (§4.6).
pub const MAX_PARTITION_MEMBERS: usize = 6144;

/// The largest file: 64 GiB, which the 10 000 parts of an object in S3 hold even where nothing can be compressed.
pub const MAX_FILE_BYTES: u64 = 64 << 30;

/// Where a member goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Into the partition at hand.
    Current,
    /// Into a new one, which it begins.
    New,
}

/// A member that no object could hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a member of {size} bytes is larger than a file in a backup may be, {MAX_FILE_BYTES} bytes")]
pub struct TooLarge {
    /// The member's size in bytes.
    pub size: u64,
}

/// Decides member by member, in the order of the walk.
#[derive(Debug, Default)]
pub struct Planner {
    bytes: u64,
    members: usize,
}

impl Planner {
    /// Places a member of `size` bytes; directories and links have none. One that is larger than a partition is one by itself:
    /// WAL-E refuses to make such a partition, and reads it as any other.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] above [`MAX_FILE_BYTES`].
    pub fn place(&mut self, size: u64) -> Result<Placement, TooLarge> {
        if size > MAX_FILE_BYTES {
            return Err(TooLarge { size });
        }
        let full = self.bytes + size >= MAX_PARTITION_BYTES || self.members >= MAX_PARTITION_MEMBERS;
        // WAL-E would leave an empty partition behind where the very first member is a full one
        let placement = if full && self.members > 0 { Placement::New } else { Placement::Current };
        if placement == Placement::New {
            *self = Self::default();
        }
        self.bytes += size;
        self.members += 1;
        Ok(placement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(sizes: &[u64]) -> Vec<usize> {
        let mut planner = Planner::default();
        let mut counts = vec![0];
        for size in sizes {
            if planner.place(*size).unwrap() == Placement::New {
                counts.push(0);
            }
            *counts.last_mut().unwrap() += 1;
        }
        counts
    }

    #[test]
    fn members_are_bounded_by_number() {
        // §12, vector 21: the root and 6200 files
        assert_eq!(partitions(&vec![1; 6201]), [6144, 57]);
    }

    #[test]
    fn members_are_bounded_by_size() {
        // §12, vector 22
        let file = 600 << 20;
        assert_eq!(partitions(&[0, file, file, file, 10]), [3, 2]);
        assert_eq!(partitions(&[0, 10, MAX_PARTITION_BYTES, 10]), [2, 1, 1]);
        assert_eq!(partitions(&[0, MAX_PARTITION_BYTES - 1, 0, 1]), [3, 1]);
        assert_eq!(partitions(&[MAX_PARTITION_BYTES]), [1]);
        let large = 2 * MAX_PARTITION_BYTES;
        assert_eq!(partitions(&[0, 10, large, large, 0, 10]), [2, 1, 1, 2]);
        assert_eq!(partitions(&[large, 0]), [1, 1]);
        let too_large = MAX_FILE_BYTES + 1;
        assert_eq!(Planner::default().place(too_large), Err(TooLarge { size: too_large }));
    }
}
