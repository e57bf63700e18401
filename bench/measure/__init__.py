"""The instrument: clock, memory, ceilings, the machine it stands on, the record of a run."""
