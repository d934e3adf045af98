"""From labelled data to episodes: sources → build → EpisodeDataset → EpisodeSampler."""
