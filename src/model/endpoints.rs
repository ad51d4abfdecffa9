//! The choice of endpoints of a Service port: one pure function.
