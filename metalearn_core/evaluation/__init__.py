"""From episodes to accuracies with intervals, paired comparisons and reports."""
