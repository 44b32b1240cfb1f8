"""What people put into their models: conversion, factories, exported layers."""
