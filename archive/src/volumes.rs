//! A column of volumes, narrow for as long as they are.

use crate::row::PRICE_LIMIT;

/// Volumes scaled by 10^8, below 10^38 in magnitude (`Decimal(38, 8)`).
///
/// Nearly all are below 10^18 and take half the memory, of a worker, of the wire and of the server: a column is kept in
/// eight bytes a value (`Decimal(18, 8)`) until one comes that needs more.
#[derive(Debug, Clone)]
pub enum Volumes {
    /// All of them are below 10^18 in magnitude.
    Narrow(Vec<i64>),
    Wide(Vec<i128>),
}

impl Volumes {
    pub fn with_capacity(rows: usize) -> Self {
        Self::Narrow(Vec::with_capacity(rows))
    }

    #[inline]
    pub fn push(&mut self, value: i128) {
        match self {
            Self::Narrow(values) => match narrow(value) {
                Some(value) => values.push(value),
                None => self.push_wide(value),
            },
            Self::Wide(values) => values.push(value),
        }
    }

    #[cold]
    fn push_wide(&mut self, value: i128) {
        if let Self::Narrow(values) = self {
            let mut wide = Vec::with_capacity(values.capacity());
            wide.extend(values.iter().map(|&value| i128::from(value)));
            *self = Self::Wide(wide);
        }
        if let Self::Wide(values) = self {
            values.push(value);
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(values) => values.len(),
            Self::Wide(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, index: usize) -> Option<i128> {
        match self {
            Self::Narrow(values) => values.get(index).map(|&value| value.into()),
            Self::Wide(values) => values.get(index).copied(),
        }
    }

    /// Memory held, in bytes.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Narrow(values) => values.capacity() * size_of::<i64>(),
            Self::Wide(values) => values.capacity() * size_of::<i128>(),
        }
    }
}

impl Default for Volumes {
    fn default() -> Self {
        Self::Narrow(Vec::new())
    }
}

/// Values are compared, not how they are kept.
impl PartialEq for Volumes {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && (0..self.len()).all(|index| self.get(index) == other.get(index))
    }
}

impl Eq for Volumes {}

fn narrow(value: i128) -> Option<i64> {
    i64::try_from(value).ok().filter(|value| value.unsigned_abs() < PRICE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_wide_from_the_first_value_that_needs_it() {
        let limit = i128::from(PRICE_LIMIT);
        let values = [0, limit - 1, 1 - limit, -1, limit, 3, -limit, i128::MAX, i128::MIN];
        let mut column = Volumes::with_capacity(2);
        for (index, &value) in values.iter().enumerate() {
            column.push(value);
            assert_eq!(matches!(column, Volumes::Narrow(_)), index < 4, "{value}");
        }
        assert_eq!((0..=values.len()).map_while(|index| column.get(index)).collect::<Vec<_>>(), values);
        assert_eq!(column.len(), values.len());
        assert_eq!(Volumes::Narrow(vec![1, -2]), Volumes::Wide(vec![1, -2]));
        assert_ne!(Volumes::Narrow(vec![1]), Volumes::Wide(vec![2]));
    }
}
