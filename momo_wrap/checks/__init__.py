"""What the wrapper refuses, before anything is changed, each with what to write instead."""
