//! NetworkPolicy: from the model to the tables that the programs judge by.

#[cfg(test)]
pub(crate) mod oracle;
