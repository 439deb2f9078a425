"""FoldPlan."""
