"""Videos that are written: frames as they are shown, side by side, and files with sound."""
