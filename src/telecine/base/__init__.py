"""What every other package uses: checks and errors, shapes, precision, files, devices, imports of the user's code."""
