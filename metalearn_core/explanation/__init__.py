"""Why a learner said what it said: data that people can check, never pictures."""
