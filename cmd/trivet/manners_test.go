package main

func unprivilegedChild() {}
