"""From records to slopes, verdicts, findings: frames in, frames and sentences out. Imports no torch."""
